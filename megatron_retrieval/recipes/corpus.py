"""The text of unsupervised pretraining, and whether it fits the checkpoint that training starts from."""

from __future__ import annotations

from megatron_retrieval.checkpoint.starting_point import StartingPoint
from megatron_retrieval.data.corpus import CorpusStore
from megatron_retrieval.errors import MismatchError
from megatron_retrieval.tokenizers import WordPieceTokenizer


def open_corpus(path: str, start: StartingPoint | None) -> CorpusStore:
    """The corpus to train on, which must have the starting point's vocabulary.

    Raises:
        DataError: there is no corpus.
        MismatchError: it was tokenized with another vocabulary.
    """
    corpus = CorpusStore(path)
    if start is not None:
        expected = WordPieceTokenizer(start.vocab_file, start.lower_case).fingerprint
        if corpus.tokenizer.fingerprint != expected:
            raise MismatchError(
                f"The corpus in {path} was tokenized with vocabulary {corpus.tokenizer.fingerprint}, but the "
                f"checkpoint {start.folder} has vocabulary {expected}; build the corpus with "
                f"--vocab-file {start.vocab_file}{'' if start.lower_case else ' --no-lower-case'}."
            )
    return corpus
