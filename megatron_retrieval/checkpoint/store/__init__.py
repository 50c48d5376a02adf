"""Checkpoints on disk: manifest, reader, writer."""
