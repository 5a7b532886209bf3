"""The doctor: before a run, it says what this machine has, what a recipe needs, how long it takes, and what to change
if it does not fit.
"""
