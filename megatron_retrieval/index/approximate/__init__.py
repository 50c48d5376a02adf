"""Compressed and approximate indexes, built and searched by faiss."""
