"""`python -m sksd` is `sksd`."""

from sksd.cli.main import main

main()
