"""Configuration: keyword-only dataclasses become flat Megatron-style flags and YAML keys."""

from megatron_retrieval.config.parser import field_flags, from_flat_dict, parse_config, to_flat_dict, write_config
from megatron_retrieval.config.program import run_program

__all__ = ["field_flags", "from_flat_dict", "parse_config", "run_program", "to_flat_dict", "write_config"]
