"""Penalties on the primary's decoder rows, each with its equation, source and closed-form gradient;
`metasae.recipe.registry` names them.

A penalty is a function of a `Scene` that returns (value, gradient [n, d] of the value). The trainer multiplies both by
the penalty's coefficient. docs/extending.md walks through adding one.
"""
