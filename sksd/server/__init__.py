"""The daemon: configuration, TLS, login, discovery, the front door."""
