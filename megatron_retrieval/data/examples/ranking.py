"""Training data of cross-encoders: a positive and K - 1 hard negatives for every question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from megatron_retrieval.config.checks import PositiveInt
from megatron_retrieval.data.examples.batches import Share
from megatron_retrieval.data.examples.data_sets import DataSets
from megatron_retrieval.data.examples.labelled import (
    LabelledDataConfig,
    data_sets_of,
    hard_negatives_of,
    num_taught,
    read_examples,
)
from megatron_retrieval.data.examples.passage_pool import NO_PASSAGE, PassageCollector
from megatron_retrieval.data.layouts.pair import PairFormatConfig
from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.extractive import RankingBatch
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.answer_text import normalized

_CACHED_TEXTS = 1 << 17
#: what stands for no passage
_NOTHING = Passage("", "", "")


@dataclass(frozen=True, kw_only=True)
class RankingDataConfig(LabelledDataConfig):
    """Labelled training data of a cross-encoder."""

    num_hard_negatives: PositiveInt = 7
    """Hard negatives per question."""


class RankingDataset:
    """Questions with positive and hard negative passages, tokenized when they are drawn; a BatchSource.

    Args:
        config: files and negatives.
        layout: of question and passage.
        tokenizer: of the cross-encoder to train.
        seed: of the run.

    Raises:
        DataError: a file is malformed, or no question has a positive passage, or none has a hard negative.
    """

    def __init__(self, config: RankingDataConfig, layout: PairFormatConfig, tokenizer: Vocabulary, seed: int) -> None:
        self._config, self._layout, self._tokenizer, self._seed = config, layout, tokenizer, seed
        collector = PassageCollector()
        self._examples = read_examples(config, collector)
        self.num_taught = num_taught(self._examples)
        self._passages = collector.passages()
        self._normalized_text = lru_cache(_CACHED_TEXTS)(lambda number: normalized(self._passages[number].text))
        if not any(example.hard_negatives for example in self._examples):
            raise DataError(config.train_data[0], "no question has a hard negative", hint="Mine some first (mine).")

    def __len__(self) -> int:
        return len(self._examples)

    def data_sets(self) -> DataSets | None:
        """See `data_sets_of`."""
        return data_sets_of(self._config, self._examples)

    def batch(
        self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int = 0, dp_size: int = 1
    ) -> RankingBatch:
        """See BatchSource; hard negatives are drawn."""
        share = Share.of(len(indices), dp_rank, dp_size)
        numbers = np.full((share.num_slots, 1 + self._config.num_hard_negatives), NO_PASSAGE, np.int64)
        teacher = torch.full(numbers.shape, math.nan) if self.num_taught else None
        asked = [""] * share.num_slots
        for slot, index in enumerate(indices[share.own]):
            example, position = self._examples[index], first_position + share.first + slot
            numbers[slot, 0] = example.positives[0]
            numbers[slot, 1:] = hard_negatives_of(
                example, self._config, self._normalized_text, self._seed, epoch, position
            )
            asked[slot] = example.question
            if teacher is not None:
                teacher[slot] = torch.tensor(example.teacher_scores(numbers[slot].tolist()))
        questions = [question for question in asked for _ in range(numbers.shape[1])]
        is_real = numbers != NO_PASSAGE
        drawn = [_NOTHING if number == NO_PASSAGE else self._passages[number] for number in numbers.ravel().tolist()]
        pairs = self._layout.lay_out(questions, drawn, self._tokenizer)
        return RankingBatch(pairs, torch.from_numpy(is_real), len(indices), teacher)
