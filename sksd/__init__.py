"""sksd, the Spyder Kernel Spinner Daemon."""

__version__ = "0.1.0"
