"""The text of unsupervised pretraining, and whether it fits the checkpoint that training starts from."""

from __future__ import annotations

from megatron_retrieval.checkpoint.starting_point import StartingPoint
from megatron_retrieval.data.corpus import CorpusStore
from megatron_retrieval.tokenizers import WordPieceTokenizer


def open_corpus(path: str, start: StartingPoint | None) -> CorpusStore:
    """The corpus to train on, which must have the starting point's vocabulary.

    Raises:
        DataError: there is no corpus.
        MismatchError: it was tokenized with another vocabulary.
    """
    corpus = CorpusStore(path)
    if start is not None:
        vocabulary = WordPieceTokenizer(start.vocab_file, start.lower_case)
        corpus.require_vocabulary(vocabulary, f"the checkpoint {start.folder}")
    return corpus
