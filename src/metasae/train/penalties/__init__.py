"""Penalties on the primary's decoder rows, each with its equation, source and closed-form gradient;
`metasae.recipe.registry` names them.

A penalty is a function of a `Scene` that returns its value, the value's gradient by the rows [n, d] and, where the
activations matter, that by the kept entries [K] (`scene.Charge`). The trainer multiplies all by the penalty's
coefficient. docs/extending.md walks through adding one.
"""
