"""Text to token ids."""

from megatron_retrieval.tokenizers.wordpiece import SpecialIds, WordPieceTokenizer

__all__ = ["SpecialIds", "WordPieceTokenizer"]
