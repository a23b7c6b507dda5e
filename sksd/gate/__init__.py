"""The privileged part of a shared host's daemon: checks credentials, starts people's proxies (docs/security.md)."""
