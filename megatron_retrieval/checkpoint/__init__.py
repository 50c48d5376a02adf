"""Checkpoints: the sharded store, what it holds of a dual encoder, and Hugging Face weight tables."""
