"""Answers of a causal reader, written behind a prompt with all passages of a question, or with one of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.data.layouts.joint import JointLayout
from megatron_retrieval.data.stores.ragged import Ragged
from megatron_retrieval.evaluation.fusion_search import TextsReader
from megatron_retrieval.evaluation.generated_answers import GeneratedAnswerer, ReadPassages
from megatron_retrieval.models.generation import GenerationConfig
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.tokens import TokenBatch


class CausalAnswerer(GeneratedAnswerer):
    """See GeneratedAnswerer; where passages are concatenated, all of a question's stand in one prompt. The answer is
    the first line that is written, and generation ends with it (`models.answer_lines`)."""

    def __init__(
        self,
        reader: TextsReader,
        tokenizer: Vocabulary,
        layout: JointLayout,
        config: GenerationConfig,
        topology: ProcessTopology,
        *,
        passage_scores: PassageScoreConfig | None = None,
        micro_batch_size: int = 128,
    ) -> None:
        super().__init__(
            reader,
            tokenizer,
            layout,
            config,
            topology,
            passage_scores=passage_scores,
            micro_batch_size=micro_batch_size,
        )
        self._prompts = layout
        self._is_joint = config.resolved(passage_scores or PassageScoreConfig()).answer_from == "concatenated"

    def lay_out(self, questions: Ragged, read: ReadPassages) -> tuple[TokenBatch, Tensor]:
        """See GeneratedAnswerer."""
        if not self._is_joint:
            return super().lay_out(questions, read)
        prompts = self._prompts.together(questions, read.numbers, (read.titles, read.texts))
        return prompts, torch.ones(len(prompts), 1, dtype=torch.bool)

    def text(self, ids: Sequence[int], question: ReaderQuestion, read: ReadPassages, place: int) -> str:
        """See GeneratedAnswerer."""
        lines = super().text(ids, question, read, place).splitlines()
        return lines[0].strip() if lines else ""
