"""The kinds of models that checkpoints hold."""
