"""The link: frames, the sans-I/O core, and its two thin ends (docs/link.md)."""
