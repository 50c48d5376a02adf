"""The Inverse Cloze Task: a sentence asks for the block that it was taken from (Lee et al. 2019, arXiv 1906.00300)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_retrieval.config.checks import Checked, Fraction
from megatron_retrieval.data.examples.batches import Share
from megatron_retrieval.data.layouts.blocks import (
    BlockConfig,
    BlockLayout,
    Blocks,
    SentenceCorpus,
    make_blocks,
    split_documents,
)
from megatron_retrieval.data.layouts.sequences import (
    TextFormatConfig,
    at_the_beginning,
    format_questions,
    prefix_ids,
    with_fillers,
)
from megatron_retrieval.data.stores.ragged import Ragged, Rows
from megatron_retrieval.errors import DataError
from megatron_retrieval.types.contrastive import ContrastiveBatch, Numbers, SameGroup
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.seeds import fractions

log = get_logger("data")


@dataclass(frozen=True, kw_only=True)
class IctDataConfig(Checked):
    """Pairs of a sentence and its block."""

    blocks: BlockConfig
    query_in_block_prob: Fraction = 0.1
    """Probability that the query sentence is kept in its block, which teaches word matching."""
    use_one_sent_docs: bool = False
    """Train on blocks of one sentence too; their passage is the title or, without one, the sentence."""
    exclude_same_document: bool = True
    """Do not use other blocks of the query's document as negatives; they are counted as num_false_negatives."""


class IctDataset:
    """Blocks, each of which gives one example an epoch; a BatchSource.

    Args:
        corpus: the sentences.
        blocks: the blocks to use.
        config: how examples are drawn, and which blocks are excluded as negatives.
        text_format: layout and lengths of queries and blocks.
        seed: of the run.
    """

    def __init__(
        self, corpus: SentenceCorpus, blocks: Blocks, config: IctDataConfig, text_format: TextFormatConfig, seed: int
    ) -> None:
        self._corpus, self._blocks, self._config, self._format = corpus, blocks, config, text_format
        self._layout, self._seed = _layout(corpus, config, text_format), seed
        self._prefix = prefix_ids(text_format.query_prefix, corpus.vocabulary)

    def __len__(self) -> int:
        return len(self._blocks)

    def batch(
        self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int = 0, dp_size: int = 1
    ) -> ContrastiveBatch:
        """See BatchSource; the query is drawn, and whether it stays in the block."""
        share = Share.of(len(indices), dp_rank, dp_size)
        rows = np.asarray(indices, np.int64)
        blocks = self._blocks[rows[share.own]]
        queries, stays = self._draw(blocks, epoch, first_position + share.first)
        special, query_length = self._corpus.special, self._format.query_seq_length
        sentences = at_the_beginning(self._corpus.sentences.take(queries, query_length), self._corpus.vocabulary)
        questions = format_questions(sentences, special, query_length, self._prefix)
        passages = self._layout.tokens(self._corpus, blocks.document, self._contexts(blocks, queries, stays))
        excluded, num_false_negatives = self._excluded(self._blocks.document[rows], share, dp_size)
        own = np.full(share.num_slots, -1, np.int64)
        own[: share.num_real] = rows[share.own]
        return ContrastiveBatch(
            questions=with_fillers(questions, share.num_slots, special),
            passages=with_fillers(passages, share.num_slots, special),
            question_is_real=torch.arange(share.num_slots) < share.num_real,
            excluded=excluded,
            num_questions=len(indices),
            num_false_negatives=num_false_negatives,
            numbers=Numbers(*(torch.from_numpy(own),) * 2),
        )

    def false_negatives(self, questions: Rows, passages: Rows) -> NDArray[np.bool_]:
        """[n, M] bool, where a block of other batches is no negative of a sentence: it is its own or, unless told
        otherwise, of the same document. Both are called by their `Numbers`."""
        asked, blocks = questions, passages
        if self._config.exclude_same_document:
            asked, blocks = (self._blocks.document[numbers] for numbers in (questions, passages))
        return asked[:, None] == blocks

    def _draw(self, blocks: Blocks, epoch: int, first_position: int) -> tuple[Rows, NDArray[np.bool_]]:
        """For each block the number of the sentence that is the query, and whether it stays in the block."""
        positions = first_position + np.arange(len(blocks))
        num_sentences = blocks.end - blocks.first
        places = fractions(positions, self._seed, "ict-query", epoch) * num_sentences
        stays = fractions(positions, self._seed, "ict-query-stays", epoch) < self._config.query_in_block_prob
        titles = self._corpus.titles.offsets
        has_title = (titles[blocks.document + 1] > titles[blocks.document]) & self._layout.use_titles
        return blocks.first + places.astype(np.int64), stays | ((num_sentences == 1) & ~has_title)

    def _contexts(self, blocks: Blocks, queries: Rows, stays: NDArray[np.bool_]) -> Ragged:
        """The tokens of the blocks, without those of queries that are removed."""
        firsts = np.stack([blocks.first, np.where(stays, queries, queries + 1)], axis=1).ravel()
        ends = np.stack([queries, blocks.end], axis=1).ravel()
        parts = self._corpus.sentences.join(firsts, ends, self._layout.seq_length)
        return Ragged(parts.values, parts.offsets[::2])

    def _excluded(self, documents: Rows, share: Share, dp_size: int) -> tuple[SameGroup, int]:
        """What is no candidate, given the document of each block of the global batch; how many pairs are excluded."""
        passages = np.full(share.num_slots * dp_size, SameGroup.FILLER, np.int64)
        passages[: len(documents)] = documents
        questions = np.full(share.num_slots, SameGroup.NO_GROUP, np.int64)
        num_false_negatives = 0
        if self._config.exclude_same_document:
            own = documents[share.own]
            questions[: len(own)] = own
            _, place, counts = np.unique(documents, return_inverse=True, return_counts=True)
            num_false_negatives = int((counts[place[share.own]] - 1).sum())
        positives = share.first + torch.arange(share.num_slots)
        return SameGroup(torch.from_numpy(questions), torch.from_numpy(passages), positives), num_false_negatives


def ict_datasets(
    corpus: SentenceCorpus, config: IctDataConfig, text_format: TextFormatConfig, seed: int
) -> tuple[IctDataset, IctDataset]:
    """The examples to train on, and those held out (perhaps none).

    Raises:
        DataError: the corpus gives no block to train on; the message says why.
    """
    layout, path = _layout(corpus, config, text_format), config.blocks.data_path
    num_documents = len(corpus.documents) - 1
    train, held_out = split_documents(num_documents, config.blocks.valid_fraction, seed)
    blocks = make_blocks(corpus, train, layout)
    kept = _usable(blocks, config)
    if not len(blocks):
        raise DataError(path, "no document is left to train on", hint="Lower --valid-fraction, or give more text.")
    if not len(kept):
        hint = (
            "Give longer documents, a greater --retriever-seq-length, or --use-one-sent-docs to train on such blocks."
        )
        raise DataError(path, f"none of the {len(blocks):,} blocks has a second sentence", hint=hint)
    held_out_blocks = _usable(make_blocks(corpus, held_out, layout), config)
    counts = (len(kept), len(train), len(blocks) - len(kept), len(held_out_blocks), len(held_out))
    log.info(
        "%s blocks of %s documents to train on, %s dropped for one sentence; held out: %s blocks of %s documents",
        *(f"{count:,}" for count in counts),
    )
    datasets = (IctDataset(corpus, chosen, config, text_format, seed) for chosen in (kept, held_out_blocks))
    return next(datasets), next(datasets)


def _layout(corpus: SentenceCorpus, config: IctDataConfig, text_format: TextFormatConfig) -> BlockLayout:
    return BlockLayout(
        use_titles=config.blocks.use_titles,
        seq_length=text_format.retriever_seq_length,
        passage_format=text_format.passage_format,
        prefix=tuple(prefix_ids(text_format.passage_prefix, corpus.vocabulary)),
        num_between=corpus.special.num_between,
    )


def _usable(blocks: Blocks, config: IctDataConfig) -> Blocks:
    return blocks if config.use_one_sent_docs else blocks[blocks.end - blocks.first > 1]
