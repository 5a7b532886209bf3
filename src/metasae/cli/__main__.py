"""`python -m metasae.cli`."""

from metasae.cli import main

main()
