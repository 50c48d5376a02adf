"""What the objectives of end-to-end training ask of a reader, whatever its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.data.examples.retrieved_fusion import RetrievedTexts
from megatron_retrieval.models.fusion_reader import FusionReader
from megatron_retrieval.models.t5 import shift_right
from megatron_retrieval.objectives.end_to_end import sum_over_passages
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.parallel.vocab_loss import (
    copy_to_vocab_ranks,
    vocab_parallel_cross_entropy,
    vocab_parallel_mean,
    vocab_parallel_pick,
)
from megatron_retrieval.types.tokens import TokenBatch, to_device

#: what an objective may ask a reader for: methods of a reading; weighed: `together` takes scores of passages
Pass = Literal["each", "each_mask", "each_token", "holds", "smoothed", "span_sums", "together", "weighed"]


class Reading(Protocol):
    """A reader with n questions, K passages for each, and the answers before it.

    A pass runs the model and is differentiable where gradients are on. Log-likelihoods are float32, on the model's
    device, the same on tensor-parallel neighbours, all of which must ask for the same passes in the same order.
    """

    @property
    def module(self) -> nn.Module:
        """The reader, whose mode decides whether its passes drop activations."""
        ...

    @property
    def is_real(self) -> Tensor:
        """[n, K] bool, False for fillers. Where nothing was found for a question, a reader that can do without passages
        reads it alone, as its first text."""
        ...

    def each(self) -> Tensor:
        """[n, K] log p(a | q, z) of every passage for itself; -inf where it has no chance. Fillers mean nothing."""
        ...


class PointingReading(Reading, Protocol):
    """A reading of a reader that points to the answer."""

    def holds(self) -> Tensor:
        """[n, K] bool, which passages hold the answer where the reader would see it."""
        ...

    def together(self) -> Tensor:
        """[M] log-likelihoods of the answers of questions that a passage answers, by the reader's own weights of them.

            log p(a | q, z_1 .. z_K) = log sum_z P_selected(z) p(a | q, z)

        P_selected is the softmax over all K (DPR, arXiv 2004.04906, section 6.1); only readers that select have it.
        """
        ...


class WritingReading(Reading, Protocol):
    """A reading of a reader that writes the answer token by token."""

    @property
    def is_token(self) -> Tensor:
        """[n, L] bool, False behind the answers."""
        ...

    def each_token(self) -> Tensor:
        """[n, K, L] log p(a_l | a_1 .. a_(l-1), q, z) of every passage for itself; meaningless behind the answers."""
        ...

    def smoothed(self, log_priors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What label smoothing needs beside `each_token`, which it gives as well, and the mean of the log-likelihoods
        of all tokens of the vocabulary at the same place.

        Args:
            log_priors: [n, K] log p(z | q); None: the means are those of every passage for itself.

        Returns:
            [n, K, L], and [n, K, L] means, or [n, L] means of log sum_z p(z | q) p(v | a_1 .. a_(l-1), q, z).
        """
        ...

    def together(self, passage_scores: Tensor | None = None) -> Tensor:
        """[M] log-likelihoods of all answers' tokens, question by question, each with all of its passages together.

        Args:
            passage_scores: [n, K] float, added to the attention to every token of a passage by readers that have the
                pass `weighed`; None: nothing is.
        """
        ...


class ReaderSide(Protocol):
    """Puts questions and the passages found for them before a reader."""

    @property
    def passes(self) -> frozenset[Pass]:
        """That its readings have."""
        ...

    def reading(self, batch: AskedBatch, rows: Tensor) -> Reading:
        """Lay out n questions with their passages, and the answers to learn.

        Args:
            batch: the questions of one forward pass.
            rows: [n, K] int64 rows of the evidence on the CPU, best first; behind a question's own `NULL_ROW`, where
                the null passage is a candidate (the question is read alone), and `FILLER_ROW`.
        """
        ...

    def without_passages(self, batch: AskedBatch) -> Mapping[str, Tensor]:
        """Figures of the reader that reads the questions alone, scalars by name: sums over the questions. Empty for a
        reader that needs passages."""
        ...


def smoothed(
    likelihoods: Tensor, labels: Tensor, is_real: Tensor, log_priors: Tensor | None, tp_group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """See `WritingReading.smoothed`.

    Args:
        likelihoods: [n, K, L, V / tensor-parallel size] log p(v | a_1 .. a_(l-1), q, z), this rank's part; the lowest
            number at entries without a token.
        labels: [n, L] int64, -1 behind the answers.
    """
    own_labels = labels.clamp(min=0)[:, None].expand(likelihoods.shape[:3])
    tokens = vocab_parallel_pick(likelihoods.flatten(0, 2), own_labels.flatten(), tp_group).view_as(own_labels)
    if log_priors is None:
        return tokens, vocab_parallel_mean(likelihoods, tp_group)
    # every rank mixes its part of the vocabulary: their gradients of the priors are summed
    priors = copy_to_vocab_ranks(log_priors, tp_group)[:, :, None, None]
    mixture = sum_over_passages(priors + likelihoods, is_real[:, :, None, None])
    return tokens, vocab_parallel_mean(mixture, tp_group)


@dataclass(frozen=True)
class FusionReading:
    """See WritingReading.

    Attributes:
        texts: n * K rows on the CPU; those of a question stand together.
        has_text: [n, K] bool on the CPU, see `is_real`.
        labels: [n, L] int64 on the CPU, the answers with their end tokens, -1 behind them.
        topology: of the model.
    """

    reader: FusionReader
    texts: TokenBatch
    has_text: Tensor
    labels: Tensor
    topology: ProcessTopology

    @property
    def device(self) -> torch.device:
        """Of the model."""
        return self.topology.device

    @property
    def module(self) -> nn.Module:
        """See Reading."""
        return self.reader

    @property
    def is_real(self) -> Tensor:
        """See Reading."""
        return to_device(self.has_text, self.device)

    @property
    def is_token(self) -> Tensor:
        """See WritingReading."""
        return to_device(self.labels >= 0, self.device)

    def each(self) -> Tensor:
        """See Reading."""
        return self.reader.score_each(self.texts, self.has_text, self.labels)

    def each_token(self) -> Tensor:
        """See WritingReading."""
        return self.reader.score_tokens(self.texts, self.has_text, self.labels)

    def smoothed(self, log_priors: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See WritingReading."""
        tp_group = self.topology.groups.tp
        likelihoods = self.reader.score_vocabulary(self.texts, self.has_text, self.labels, tp_group)
        return smoothed(likelihoods, to_device(self.labels, self.device), self.is_real, log_priors, tp_group)

    def together(self, passage_scores: Tensor | None = None) -> Tensor:
        """See WritingReading."""
        decoder_ids = to_device(shift_right(self.labels, self.reader.model.start_id), self.device)
        labels = self.labels.flatten()
        places = (labels >= 0).nonzero()[:, 0]
        logits = self.reader(self.texts, self.has_text, decoder_ids, passage_scores, to_device(places, self.device))
        return -vocab_parallel_cross_entropy(logits, to_device(labels[places], self.device))


class FusionReadings:
    """The side of a reader that writes; see ReaderSide.

    Args:
        reader: over the parameters in training.
    """

    passes: ClassVar[frozenset[Pass]] = frozenset({"each", "each_token", "smoothed", "together", "weighed"})

    def __init__(self, reader: FusionReader, texts: RetrievedTexts, topology: ProcessTopology) -> None:
        self._reader, self._texts, self._topology = reader, texts, topology

    def reading(self, batch: AskedBatch, rows: Tensor) -> FusionReading:
        """See ReaderSide."""
        texts, has_text = self._texts.texts(batch.reader_questions, rows.numpy())
        return FusionReading(self._reader, texts, has_text, self._texts.labels(batch.targets), self._topology)

    def without_passages(self, batch: AskedBatch) -> Mapping[str, Tensor]:
        """`log_likelihood_alone`: of the answers' tokens."""
        no_rows = torch.empty(len(batch), 0, dtype=torch.int64)
        return {"log_likelihood_alone": self.reading(batch, no_rows).together().sum()}
