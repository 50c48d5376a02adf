"""Memory-mapped stores of tokens, passages and questions."""
