"""Exact search over stored vectors, on one rank or many."""
