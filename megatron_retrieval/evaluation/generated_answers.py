"""Answers of a fusion reader: written token by token from all passages of a question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.data.fusion import fuse_texts
from megatron_retrieval.data.fusion_layout import FusionLayout
from megatron_retrieval.data.ragged import Ragged, to_offsets, tokenize
from megatron_retrieval.data.reader_questions import ReaderQuestion
from megatron_retrieval.evaluation.reading_results import Prediction
from megatron_retrieval.models.fusion_reader import FusionReader
from megatron_retrieval.models.generation import GenerationConfig, generate
from megatron_retrieval.parallel import ProcessTopology
from megatron_retrieval.tokenizers import SentencePieceTokenizer
from megatron_retrieval.types import TokenBatch, real_lengths, rows_of_groups


class FusionAnswerer:
    """A Reader, see `evaluation.reader_task`; a question without passages is answered from the question alone.

    Args:
        reader: in evaluation mode.
        layout: of question and passage, as in training.
        micro_batch_size: texts (a question together with a passage) read at once, those of a question in any case.
    """

    def __init__(
        self,
        reader: FusionReader,
        tokenizer: SentencePieceTokenizer,
        layout: FusionLayout,
        config: GenerationConfig,
        topology: ProcessTopology,
        *,
        micro_batch_size: int = 128,
    ) -> None:
        self._reader, self._tokenizer, self._layout, self._config = reader, tokenizer, layout, config
        self._device, self._tp_group = topology.device, topology.groups.tp
        self._micro_batch_size = micro_batch_size

    @torch.no_grad()
    def answer(self, questions: Sequence[ReaderQuestion]) -> list[Prediction]:
        """See Reader; the score is that of `GenerationConfig`'s search."""
        texts, is_real = self._lay_out(questions)
        num_tokens = real_lengths(texts, is_real).sum(1)
        # questions with as many tokens to read stand together
        order = num_tokens.argsort(descending=True, stable=True)
        predictions = [Prediction("")] * len(questions)
        for index in order.split(max(1, self._micro_batch_size // is_real.size(1))):
            for place, prediction in zip(index.tolist(), self._answer(texts, is_real, index), strict=True):
                predictions[place] = prediction
        return predictions

    def _answer(self, texts: TokenBatch, is_real: Tensor, index: Tensor) -> list[Prediction]:
        rows = rows_of_groups(index, is_real.size(1))
        memory = self._reader.encode(texts.rows(rows).to(self._device), is_real[index].to(self._device))
        found = generate(self._reader.model, memory.states, memory.key_bias(), self._config, self._tp_group)
        answers = self._tokenizer.decode(found.ids.tolist())
        return [Prediction(text.strip(), score) for text, score in zip(answers, found.scores.tolist(), strict=True)]

    def _lay_out(self, questions: Sequence[ReaderQuestion]) -> tuple[TokenBatch, Tensor]:
        passages = [passage for question in questions for passage in question.passages]
        num_passages = np.array([len(question.passages) for question in questions], np.int64)
        return fuse_texts(
            self._layout,
            tokenize(self._tokenizer, [question.text for question in questions]),
            Ragged(np.arange(len(passages)), to_offsets(num_passages)),
            (
                tokenize(self._tokenizer, [passage.title for passage in passages]),
                tokenize(self._tokenizer, [passage.text for passage in passages]),
            ),
            shape=(len(questions), max(1, int(num_passages.max(initial=0)))),
        )
