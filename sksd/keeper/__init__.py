"""The keeper: one process per user, running as that user; the engines' parent, and the host's end of their links."""
