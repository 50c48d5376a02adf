"""Labelled contrastive training data: DPR biencoder files to global batches that no number of ranks changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_retrieval.config.checks import PositiveInt
from megatron_retrieval.data.examples.batches import Bundles, Share
from megatron_retrieval.data.examples.data_sets import DataSets
from megatron_retrieval.data.examples.labelled import (
    LabelledDataConfig,
    LabelledQuestion,
    data_sets_of,
    hard_negatives_of,
    num_taught,
    read_examples,
)
from megatron_retrieval.data.examples.passage_pool import NO_PASSAGE, AnswerIndex, PassageCollector
from megatron_retrieval.data.layouts.sequences import TextFormatConfig, lay_out_questions
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import Rows, tokenize
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.contrastive import ContrastiveBatch, Numbers
from megatron_retrieval.types.tokens import TokenBatch
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.seeds import generator

Mask = NDArray[np.bool_]
#: of batches whose passages are asked for again, see `DprDataset.false_negatives`
_CACHED_INDEXES = 64


@dataclass(frozen=True, kw_only=True)
class DprDataConfig(LabelledDataConfig):
    """Labelled training data."""

    num_positives: PositiveInt = 1
    """Positives per question, none of which is a negative of its own question; some may have fewer."""
    positive_selection: Literal["first", "sample"] = "first"
    """first: the first ones in the file; sample: drawn anew in every epoch."""
    same_title_questions: PositiveInt = 1
    """Group up to n questions with the same positive title in a batch, so that their passages are hard negatives of one
    another; a passage that several share is encoded once. 1: plain shuffling."""


class DprDataset:
    """Questions with positive and hard negative passages; a BatchSource.

    Every rank works out the passages of the whole global batch, which are the candidates of each of its questions.

    Args:
        config: files and negatives.
        text_format: layout and lengths of questions and passages.
        tokenizer: of the encoder to train.
        seed: of the run.
        evidence: whose passages become hard negatives when they are mined, in the place of those of the files.

    Raises:
        DataError: a file is malformed, or no question has a positive passage.
    """

    def __init__(
        self,
        config: DprDataConfig,
        text_format: TextFormatConfig,
        tokenizer: Vocabulary,
        seed: int,
        evidence: EvidenceStore | None = None,
    ) -> None:
        self._config, self._format, self._tokenizer, self._seed = config, text_format, tokenizer, seed
        collector = PassageCollector()
        self._examples = read_examples(config, collector)
        self.num_taught = num_taught(self._examples)
        self._pool = collector.pool(tokenizer, text_format, evidence)
        self._mined: Rows | None = None
        # one empty question at the end stands for a filler
        self._questions = tokenize(tokenizer, [*(example.question for example in self._examples), ""])
        self._known_index = lru_cache(_CACHED_INDEXES)(AnswerIndex)
        get_logger("data").info("training passages: %s different ones", f"{len(self._pool):,}")

    def __len__(self) -> int:
        return len(self._examples)

    def require_negatives(self, global_batch_size: int) -> None:
        """Refuse batches of one question without hard negatives: nothing could be told from its positive.

        Raises:
            ConfigError: the loss would be 0 from the first step on.
        """
        has_negatives = self._config.num_hard_negatives and any(example.hard_negatives for example in self._examples)
        if global_batch_size == 1 and not has_negatives:
            raise ConfigError(
                "--global-batch-size 1 without hard negatives leaves nothing to tell the positive passage from: the "
                "loss is 0. Give more questions a batch, or data with hard negatives and --num-hard-negatives."
            )

    def all_questions(self) -> TokenBatch:
        """See `MinedExamples`."""
        return self._question_tokens(range(len(self)), len(self))

    def mine(self, rows: Rows) -> None:
        """See `MinedExamples`."""
        self._mined = rows

    def data_sets(self) -> DataSets | None:
        """See `data_sets_of`."""
        return data_sets_of(self._config, self._examples)

    def bundles(self) -> Bundles | None:
        """How the sampler is to bundle the questions."""
        if self._config.same_title_questions == 1:
            return None
        positives = np.array([example.positives[0] for example in self._examples])
        titles = np.unique([self._pool.title(number) for number in positives], return_inverse=True)[1]
        return Bundles(titles, positives, self._config.same_title_questions)

    def batch(
        self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int = 0, dp_size: int = 1
    ) -> ContrastiveBatch:
        """See BatchSource; hard negatives are drawn."""
        share = Share.of(len(indices), dp_rank, dp_size)
        num_slots, first, own = share.num_slots, share.first, list(indices[share.own])
        num_positives = self._config.num_positives
        slots = np.full((dp_size * num_slots, num_positives + self._config.num_hard_negatives), NO_PASSAGE, np.int64)
        for place, index in enumerate(indices):
            slots[place] = self._passages_of(index, epoch, first_position + place)
        false_negatives = np.zeros((num_slots, slots.size), np.bool_)
        if self._config.exclude_false_negatives:
            false_negatives[: len(own)] = self._false_negatives([self._examples[index] for index in own], slots.ravel())
        rows = np.arange(num_slots)[:, None]
        positives = (first + rows) * slots.shape[1] + np.arange(num_positives)
        false_negatives[rows, positives] = False
        excluded = false_negatives | (slots.ravel() == NO_PASSAGE)
        # also for fillers, whose loss would otherwise have no candidate at all
        excluded[rows[:, 0], positives[:, 0]] = False
        return ContrastiveBatch(
            questions=self._question_tokens(own, num_slots),
            passages=self._pool.tokens(slots[first : first + num_slots].ravel()),
            question_is_real=torch.arange(num_slots) < share.num_real,
            excluded=torch.from_numpy(excluded),
            num_questions=len(indices),
            num_false_negatives=int(false_negatives.sum()),
            num_positives=num_positives,
            teacher=self._teacher_of(own, slots[first : first + num_slots]),
            numbers=Numbers(
                torch.tensor([*own, *[-1] * (num_slots - len(own))]),
                torch.from_numpy(slots[first : first + num_slots].ravel()),
            ),
        )

    def false_negatives(self, questions: Rows, passages: Rows) -> Mask:
        """[n, M] bool, where a passage of other batches is no negative of a question: it is a positive of its own, or,
        unless told otherwise, contains its answer. Both are called by their `Numbers`."""
        examples = [self._examples[number] for number in questions.clip(0).tolist()]
        if self._config.exclude_false_negatives:
            return self._false_negatives(examples, passages, self._known_index)
        return np.stack([np.isin(passages, example.positives) for example in examples])

    def _teacher_of(self, indices: Sequence[int], slots: Rows) -> Tensor | None:
        """See ContrastiveBatch."""
        if not self.num_taught:
            return None
        scores = torch.full(slots.shape, math.nan)
        for place, index in enumerate(indices):
            scores[place] = torch.tensor(self._examples[index].teacher_scores(slots[place].tolist()))
        return scores

    def _passages_of(self, index: int, epoch: int, position: int) -> list[int]:
        """Positives, then hard negatives; each filled up with `NO_PASSAGE`."""
        example = self._examples[index]
        if self._mined is not None:
            rows = self._mined[index]
            found = self._pool.numbers_of_rows(rows[rows >= 0], without=example.positives)
            example = example._replace(hard_negatives=found)
        wanted, positives = self._config.num_positives, list(example.positives)
        if self._config.positive_selection == "sample" and len(positives) > 1:
            order = generator(self._seed, "positives", epoch, position).permutation(len(positives))
            positives = [positives[place] for place in order]
        negatives = hard_negatives_of(example, self._config, self._pool.normalized_text, self._seed, epoch, position)
        return [*positives[:wanted], *[NO_PASSAGE] * (wanted - len(positives)), *negatives]

    def _question_tokens(self, indices: Sequence[int], num_slots: int) -> TokenBatch:
        rows = np.full(num_slots, len(self), np.int64)
        rows[: len(indices)] = indices
        return lay_out_questions(self._questions.take(rows), self._tokenizer, self._format)

    def _false_negatives(
        self,
        examples: Sequence[LabelledQuestion],
        slots: Rows,
        make_index: Callable[[tuple[str, ...]], AnswerIndex] = AnswerIndex,
    ) -> Mask:
        """[examples, slots] where the slot's passage is a positive of the example or contains an answer of it."""
        passages, columns = np.unique(slots, return_inverse=True)
        place_of = {int(passage): place for place, passage in enumerate(passages)}
        texts = tuple("" if passage == NO_PASSAGE else self._pool.normalized_text(int(passage)) for passage in passages)
        index = make_index(texts)
        hits = np.zeros((len(examples), len(passages)), np.bool_)
        for row, example in enumerate(examples):
            hits[row, [place_of[passage] for passage in example.positives if passage in place_of]] = True
            for answer in example.answers:
                hits[row, index.containing(answer)] = True
        return hits[:, columns]
