"""Documents to token ids of their sentences: the work of a worker process of the corpus builder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_retrieval.data.files.sentences import Document, split_sentences
from megatron_retrieval.data.stores.column_folder import EncodedColumn
from megatron_retrieval.data.stores.ragged import Rows, tokenize
from megatron_retrieval.tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True)
class EncodedDocuments:
    """Consecutive documents of the corpus.

    Attributes:
        sentences: token ids, none of them empty; those that a sentence has behind a space, so that those of several in
            turn are the ids of a text.
        titles: token ids, for each document.
        num_sentences: of each document, never 0.
        num_read: documents that this comes from.
        num_continuations: those among them that continue another one.
    """

    sentences: EncodedColumn
    titles: EncodedColumn
    num_sentences: Rows
    num_read: int
    num_continuations: int


def encode_documents(tokenizer: Vocabulary, documents: Sequence[Document], language: str) -> EncodedDocuments:
    """Split and tokenize; sentences without a token and documents without a sentence are left out."""
    sentences: list[str] = []
    counts = []
    for document in documents:
        num_before = len(sentences)
        for paragraph in document.paragraphs:
            sentences += split_sentences(paragraph, language)
        counts.append(len(sentences) - num_before)
    before = "" if tokenizer.is_separable else " "
    tokens = tokenize(tokenizer, [before + sentence for sentence in sentences])
    has_tokens = tokens.lengths > 0
    document_of = np.repeat(np.arange(len(documents)), counts)
    num_sentences = np.bincount(document_of[has_tokens], minlength=len(documents))
    kept = np.flatnonzero(num_sentences)
    titles = tokenize(tokenizer, [" ".join(documents[place].title.split()) for place in kept.tolist()])
    return EncodedDocuments(
        EncodedColumn(tokens.values, tokens.lengths[has_tokens]),
        EncodedColumn(titles.values, titles.lengths),
        num_sentences[kept],
        len(documents),
        sum(document.is_continuation for document in documents),
    )
