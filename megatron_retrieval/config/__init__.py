"""Configuration: keyword-only dataclasses become flat Megatron-style flags and YAML keys."""
