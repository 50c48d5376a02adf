"""Training objectives: pure functions of tensors that return a LossOutput."""
