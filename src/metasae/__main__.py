"""`python -m metasae`, as torchrun starts it."""

from metasae.cli import main

main()
