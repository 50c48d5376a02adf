"""Readers of the files that users bring."""
