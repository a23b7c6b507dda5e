"""The gate's process, started by the daemon, never by hand."""

from sksd.gate.gate import main

main()
