"""Training data of extractive readers: one passage with an answer and K - 1 without, for every question."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch

from megatron_retrieval.data.examples.answer_spans import span_columns
from megatron_retrieval.data.examples.batches import Share
from megatron_retrieval.data.examples.extractive_examples import ExampleCollector, ExtractiveDataConfig
from megatron_retrieval.data.files.passage_questions import ReaderTrainingDataConfig, read_training_questions
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.errors import DataError
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.extractive import ExtractiveBatch
from megatron_retrieval.utils.seeds import generator

#: collected together; with a hundred passages each their texts and encodings take some 50 MiB
_BLOCK_QUESTIONS = 32


class ExtractiveDataset:
    """Questions with passages that hold an answer and passages that hold none; only token ids are kept. A BatchSource.

    Args:
        data: the files, see `read_reader_questions`, and which of their passages are used.
        layout: of question and passage.
        max_answer_length: in tokens; longer answers are not learned.
        seed: of the run.

    Raises:
        DataError: a file is malformed, or no question has a passage with an answer.
    """

    def __init__(
        self,
        data: ReaderTrainingDataConfig,
        config: ExtractiveDataConfig,
        layout: ExtractiveFormatConfig,
        tokenizer: Vocabulary,
        *,
        max_answer_length: int,
        seed: int,
    ) -> None:
        data.reading.require_passages()
        self._config, self._layout, self._special, self._seed = config, layout, tokenizer.special, seed
        collector = ExampleCollector(config, layout, tokenizer, max_answer_length)
        questions = read_training_questions(data, collector.census)
        while block := list(islice(questions, _BLOCK_QUESTIONS)):
            collector.add(block)
        collector.census.log(", ".join(data.train_data))
        collector.log()
        examples, passages = collector.examples, collector.passages
        if not len(examples.questions):
            raise DataError(data.train_data[0], "no question has a passage that holds an answer")
        self._questions, self._positives = examples.questions.finish(), examples.positives.finish()
        self._negatives, self._spans = examples.negatives.finish(), examples.spans.finish()
        self._titles, self._texts = passages.titles.finish(), passages.texts.finish()

    def __len__(self) -> int:
        return len(self._questions)

    def batch(
        self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int = 0, dp_size: int = 1
    ) -> ExtractiveBatch:
        """See BatchSource; passages are drawn, and one of those that hold an answer."""
        share = Share.of(len(indices), dp_rank, dp_size)
        num_passages = self._config.num_train_passages
        numbers = np.zeros((share.num_slots, num_passages), np.int64)
        is_real = np.zeros(numbers.shape, np.bool_)
        positive_rows = np.zeros(share.num_real, np.int64)
        questions = np.zeros(share.num_slots, np.int64)  # fillers repeat the first, and do not count
        for slot, index in enumerate(indices[share.own]):
            positive_rows[slot], drawn = self._draw(index, epoch, first_position + share.first + slot)
            numbers[slot, : len(drawn)], is_real[slot, : len(drawn)] = drawn, True
            questions[slot] = index
        rows, slots = np.repeat(questions, num_passages), numbers.ravel()
        passages = self._layout.lay_out(
            self._questions.take(rows), self._titles.take(slots), self._texts.take(slots), self._special
        )
        spans = [self._spans[row] for row in positive_rows.tolist()]
        columns = span_columns(spans, passages.text_starts[::num_passages].tolist())
        return ExtractiveBatch(passages, torch.from_numpy(is_real), columns, len(indices))

    def _draw(self, index: int, epoch: int, position: int) -> tuple[int, Rows]:
        """The row of the positive among all positives, and the numbers of the passages, the positive first."""
        positives, negatives = self._positives[index], self._negatives[index]
        place, order = 0, np.arange(len(negatives))
        if self._config.passage_draw == "sample":
            random = generator(self._seed, "read-passages", epoch, position)
            place, order = int(random.integers(len(positives))), random.permutation(len(negatives))
        chosen = negatives[order[: self._config.num_train_passages - 1]]
        numbers = np.concatenate([positives[place : place + 1], chosen]).astype(np.int64)
        return int(self._positives.offsets[index]) + place, numbers
