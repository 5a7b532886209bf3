"""Before a run: what this machine has, what a recipe needs, how long it takes, and what to change where it does not
fit.
"""
