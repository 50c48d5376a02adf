"""Retriever and reader trained together."""
