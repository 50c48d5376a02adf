"""Helpers for tests and demonstrations: gloo processes, tiny models, the generated mini encyclopedia."""
