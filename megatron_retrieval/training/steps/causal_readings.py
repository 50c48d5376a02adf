"""What end-to-end training asks of a causal reader; see `readings`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from megatron_retrieval.data.examples.causal import RetrievedPrompts
from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.models.causal_reader import CausalReader
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.steps.readings import Pass, smoothed
from megatron_retrieval.types.tokens import TokenBatch, to_device


@dataclass(frozen=True)
class CausalReading:
    """See WritingReading.

    Attributes:
        prompts: n * K with one passage each on the CPU; those of a question stand together.
        has_prompt: [n, K] bool on the CPU, see `is_real`.
        joint_prompts: n with all of a question's passages, on the CPU.
        labels: [n, L] int64 on the CPU, the answers with their end tokens, -1 behind them.
    """

    reader: CausalReader
    prompts: TokenBatch
    has_prompt: Tensor
    joint_prompts: TokenBatch
    labels: Tensor
    topology: ProcessTopology

    @property
    def module(self) -> nn.Module:
        """See Reading."""
        return self.reader

    @property
    def is_real(self) -> Tensor:
        """See Reading."""
        return to_device(self.has_prompt, self.topology.device)

    @property
    def is_token(self) -> Tensor:
        """See WritingReading."""
        return to_device(self.labels >= 0, self.topology.device)

    def each(self) -> Tensor:
        """See Reading."""
        return self.reader.score_each(self.prompts, self.has_prompt, self.labels)

    def each_token(self) -> Tensor:
        """See WritingReading."""
        return self.reader.score_tokens(self.prompts, self.has_prompt, self.labels)

    def smoothed(self, log_priors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See WritingReading."""
        tp_group, labels = self.topology.groups.tp, to_device(self.labels, self.topology.device)
        likelihoods = self.reader.score_vocabulary(self.prompts, self.has_prompt, self.labels, tp_group)
        return smoothed(likelihoods, labels, self.is_real, log_priors, tp_group)

    def together(self, passage_scores: Tensor | None = None) -> Tensor:
        """See WritingReading.

        Raises:
            ValueError: scores, which have no place in a prompt.
        """
        if passage_scores is not None:
            raise ValueError("a prompt has no place for scores")
        is_real = torch.ones(len(self.joint_prompts), 1, dtype=torch.bool)
        return self.reader.score_tokens(self.joint_prompts, is_real, self.labels)[:, 0][self.is_token]


class CausalReadings:
    """The side of a causal reader; see ReaderSide."""

    passes: ClassVar[frozenset[Pass]] = frozenset({"each", "each_token", "smoothed", "together"})

    def __init__(self, reader: CausalReader, prompts: RetrievedPrompts, topology: ProcessTopology) -> None:
        self._reader, self._prompts, self._topology = reader, prompts, topology

    def reading(self, batch: AskedBatch, rows: Tensor) -> CausalReading:
        """See ReaderSide."""
        prompts, has_prompt = self._prompts.texts(batch.reader_questions, rows.numpy())
        joint = self._prompts.together(batch.reader_questions, rows.numpy())
        labels = self._prompts.labels(batch.targets)
        return CausalReading(self._reader, prompts, has_prompt, joint, labels, self._topology)

    def without_passages(self, batch: AskedBatch) -> Mapping[str, Tensor]:
        """`log_likelihood_alone`: of the answers' tokens."""
        no_rows = torch.empty(len(batch), 0, dtype=torch.int64)
        return {"log_likelihood_alone": self.reading(batch, no_rows).together().sum()}
