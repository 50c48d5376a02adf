"""Training: step modules (one per paradigm), one trainer that knows no objective, and callbacks."""
