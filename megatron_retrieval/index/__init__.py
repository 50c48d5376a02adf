"""Stored passage vectors and the search over them."""
