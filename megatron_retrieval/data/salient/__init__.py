"""Salient spans: names and dates in sentences, to be masked and recovered with the help of a passage."""
