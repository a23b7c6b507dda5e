"""`python -m sksd.keeper`: started by the proxy, never by hand."""

from sksd.keeper.main import main

main()
