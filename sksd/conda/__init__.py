"""Changing environments: a process a change, `python -P -m sksd.conda`, the only room that imports rattler."""
