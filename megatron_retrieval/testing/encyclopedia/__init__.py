"""The mini encyclopedia: generated articles and questions that a small model can learn within a minute."""

from megatron_retrieval.testing.encyclopedia.build import Ask, Encyclopedia, Entity, build_encyclopedia

__all__ = ["Ask", "Encyclopedia", "Entity", "build_encyclopedia"]
