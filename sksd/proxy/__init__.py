"""The proxy: one process per user, running as that user; environments and engines."""
