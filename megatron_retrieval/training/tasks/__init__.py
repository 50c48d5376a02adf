"""Tasks that are measured during training."""
