"""`python -m uflow` is the command `uflow`."""

from .cli import main

main()
