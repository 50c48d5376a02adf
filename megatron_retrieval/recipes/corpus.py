"""The text of unsupervised pretraining, and whether it fits the checkpoint that training starts from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.data.layouts.blocks import BlockConfig, split_documents
from megatron_retrieval.data.stores.corpus import CorpusStore
from megatron_retrieval.data.stores.ragged import Rows

Dataset = TypeVar("Dataset")


def open_corpus(path: str, start: AnyDescription | None, vocabulary: str) -> CorpusStore:
    """The corpus to train on, which must have the starting point's vocabulary.

    Args:
        vocabulary: kind of vocabulary that the model to train has.

    Raises:
        DataError: there is no corpus.
        MismatchError: it was tokenized with another vocabulary.
    """
    corpus = CorpusStore(path)
    corpus.require_kind(vocabulary)
    if start is not None:
        corpus.require_vocabulary(start.vocabulary(), f"the checkpoint {start.folder}")
    return corpus


def held_out_apart(
    corpus: CorpusStore, config: BlockConfig, seed: int, dataset: Callable[[Rows], Dataset]
) -> tuple[Dataset, Dataset | None]:
    """The examples to train on, and those held out, if any document is.

    Args:
        dataset: makes examples of some documents.
    """
    documents, held_out = split_documents(len(corpus), config.valid_fraction, seed)
    return dataset(documents), dataset(held_out) if len(held_out) else None
