"""Penalties on the primary's decoder rows, each with its equation, source and closed-form gradient;
`metasae.recipe.registry` names them.

A penalty is a function of a `Scene` that returns its value, the value's gradient by the rows [n, d] and, if it depends
on the activations, the gradient by the kept entries [K] (`scene.Charge`). The trainer multiplies all of them by the
penalty's coefficient. docs/extending.md shows how to add a penalty.
"""
