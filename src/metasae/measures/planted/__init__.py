"""Worlds whose features are known, and dictionaries with a known answer."""
