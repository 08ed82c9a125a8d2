"""`python -m halka` is `halka`."""

from halka.cli import main

main()
