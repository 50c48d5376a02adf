"""Hugging Face folders, read and written by tables of weights."""
