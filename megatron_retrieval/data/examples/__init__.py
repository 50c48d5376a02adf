"""Training examples and the loader that batches them."""
