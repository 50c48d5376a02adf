"""Hard negatives mined from what a retriever finds."""
