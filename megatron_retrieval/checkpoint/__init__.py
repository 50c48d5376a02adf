"""Checkpoints: the sharded store, the kinds of models in it, starting points, and Hugging Face weight tables."""
