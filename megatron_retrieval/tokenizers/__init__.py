"""Text to token ids."""

from megatron_retrieval.tokenizers.sentencepiece import SentencePieceTokenizer
from megatron_retrieval.tokenizers.wordpiece import SpecialIds, WordPieceTokenizer

__all__ = ["SentencePieceTokenizer", "SpecialIds", "WordPieceTokenizer"]
