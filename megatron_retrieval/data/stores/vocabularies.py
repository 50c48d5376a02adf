"""The two kinds of vocabulary that token ids come from, and what a folder of token ids says of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_retrieval.tokenizers.sentencepiece import SentencePieceTokenizer
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

Vocabulary = WordPieceTokenizer | SentencePieceTokenizer


@dataclass(frozen=True)
class VocabularyKind:
    """A kind of vocabulary.

    Attributes:
        name: in manifests and messages.
        model: whose vocabulary it is.
        file_name: of the vocabulary, in a folder of token ids.
        flag: names the vocabulary when a folder is built.
        library: tokenizes; another version may do so otherwise.
    """

    name: str
    model: str
    file_name: str
    flag: str
    library: str


WORDPIECE = VocabularyKind("WordPiece", "BERT", "vocab.txt", "--vocab-file", "tokenizers")
SENTENCEPIECE = VocabularyKind("SentencePiece", "T5", "spiece.model", "--tokenizer-model", "sentencepiece")


def kind_of(vocabulary: Vocabulary) -> VocabularyKind:
    return SENTENCEPIECE if isinstance(vocabulary, SentencePieceTokenizer) else WORDPIECE


def file_of(vocabulary: Vocabulary) -> Path:
    """What it was read from."""
    return vocabulary.model_file if isinstance(vocabulary, SentencePieceTokenizer) else vocabulary.vocab_file


def building_flags(vocabulary: Vocabulary) -> str:
    """The words that build a folder with this vocabulary."""
    is_cased = isinstance(vocabulary, WordPieceTokenizer) and not vocabulary.lower_case
    return f"{kind_of(vocabulary).flag} {file_of(vocabulary)}{' --no-lower-case' if is_cased else ''}"


def describe_vocabulary(vocabulary: Vocabulary) -> dict[str, Any]:
    """What a folder's manifest says of it."""
    entry = {
        "kind": kind_of(vocabulary).name,
        "fingerprint": vocabulary.fingerprint,
        "vocab_size": vocabulary.vocab_size,
    }
    if isinstance(vocabulary, SentencePieceTokenizer):
        return entry
    return {**entry, "lower_case": vocabulary.lower_case, "special": asdict(vocabulary.special)}


def described_kind(entry: Mapping[str, Any]) -> VocabularyKind:
    """The kind that a manifest speaks of; older ones are silent, since all were WordPiece."""
    return SENTENCEPIECE if entry.get("kind") == SENTENCEPIECE.name else WORDPIECE


def open_vocabulary(folder: Path, entry: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary that stands in a folder whose manifest describes it so.

    Raises:
        DataError: the file is missing or damaged.
    """
    kind = described_kind(entry)
    if kind is SENTENCEPIECE:
        return SentencePieceTokenizer(folder / kind.file_name)
    return WordPieceTokenizer(folder / kind.file_name, entry["lower_case"])
