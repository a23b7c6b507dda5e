"""`python -m sksd.proxy`: started by the gate as the user, never by hand."""

from sksd.proxy.main import main

main()
