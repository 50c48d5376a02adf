"""One step module per paradigm."""
