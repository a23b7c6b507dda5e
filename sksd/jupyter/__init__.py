"""Jupyter on the user's machine: the only room there that imports jupyter_client."""
