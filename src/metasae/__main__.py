"""`python -m metasae`: torchrun starts metasae this way."""

from metasae.cli import main

main()
