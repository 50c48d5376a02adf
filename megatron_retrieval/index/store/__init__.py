"""Embeddings on disk and in memory."""
