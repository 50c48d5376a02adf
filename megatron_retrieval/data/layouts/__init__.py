"""How texts become token sequences for a model."""
