"""Unlabelled passages whose vectors are to be a teacher's, beside what a batch teaches.

A fine-tuned encoder forgets what its new questions do not ask for. Where the teacher is the encoder that training
starts from, the passages hold it there (Li and Hoiem 2016, Learning without Forgetting, arXiv 1606.09282).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveFloat, PositiveInt
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.data.examples.batches import EpochSampler, Share
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.errors import ConfigError, MismatchError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.training.steps.dropout import start_dropout
from megatron_retrieval.training.steps.step import StepModule
from megatron_retrieval.types.metrics import Mean, Metrics
from megatron_retrieval.types.tokens import by_length
from megatron_retrieval.utils.seeds import derive_seed


@dataclass(kw_only=True, frozen=True)
class EmbeddingDistillationConfig(Checked):
    """Unlabelled passages that hold the encoder to the vectors of a teacher, such as itself before training."""

    distill_evidence: Path | None = field(default=None, metadata=INPUT)
    """Folder of the evidence that has these passages, of any subject; default: nothing is distilled."""
    distill_embeddings: Path | None = field(default=None, metadata=INPUT)
    """Their vectors by the teacher (embed). By --pretrained-checkpoint: training forgets less of what it was good
    at."""
    distill_weight: PositiveFloat = 1.0
    """Factor of the distance between the encoder's vectors and the teacher's: squared, over the teacher's squared
    length."""
    distill_batch_size: PositiveInt = 64
    """Passages per step over all ranks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.distill_evidence is None) != (self.distill_embeddings is None):
            raise ConfigError("--distill-evidence and --distill-embeddings belong together: give both, or neither.")

    def around(
        self,
        step: StepModule,
        model: DualEncoder,
        text_format: TextFormatConfig,
        tokenizer: Vocabulary,
        topology: ProcessTopology,
        *,
        seed: int,
        micro_batch_size: int,
    ) -> StepModule:
        """The step, with these passages beside its batches where there are any.

        Raises:
            DataError: a folder is missing or damaged.
            MismatchError: they belong to other passages, another vocabulary, or vectors of another size.
        """
        if self.distill_evidence is None or self.distill_embeddings is None:
            return step
        evidence, vectors = EvidenceStore(self.distill_evidence), EmbeddingStore(self.distill_embeddings)
        evidence.require_vocabulary(tokenizer, "the encoder in training")
        vectors.require(evidence_fingerprint=evidence.fingerprint)
        if vectors.dimension != model.dimension:
            raise MismatchError(
                f"--distill-embeddings {self.distill_embeddings}: vectors of {vectors.dimension} numbers; the encoder "
                f"in training gives {model.dimension}."
            )
        passages = _DistilledPassages(self, evidence, vectors, text_format, topology, seed)
        return EmbeddingDistillation(step, model, passages, self.distill_weight, micro_batch_size)


class _DistilledPassages:
    """Passages of each step, a function of the seed and the iteration, and a rank's share of them."""

    def __init__(
        self,
        config: EmbeddingDistillationConfig,
        evidence: EvidenceStore,
        vectors: EmbeddingStore,
        text_format: TextFormatConfig,
        topology: ProcessTopology,
        seed: int,
    ) -> None:
        self.evidence, self.vectors, self.text_format = evidence, vectors, text_format
        self.topology, self.seed = topology, seed
        self._sampler = EpochSampler(len(evidence), config.distill_batch_size, derive_seed(seed, "distilled passages"))

    def rows(self, iteration: int) -> tuple[Rows, int]:
        """This rank's rows, and how many all ranks have together; all passages have their turn before one comes
        again."""
        chosen = self._sampler.batch(iteration).indices
        share = Share.of(len(chosen), self.topology.dp_rank, self.topology.dp_size)
        return np.array(chosen[share.own], np.int64), len(chosen)


class EmbeddingDistillation:
    """A step with the loss `weight * mean of |v - t|^2 / |t|^2` added, over passages with the teacher's vectors t.

    Metrics have the mean without its weight as `distance_from_teacher`; `loss` stays that of the batch.
    """

    def __init__(
        self, step: StepModule, model: DualEncoder, passages: _DistilledPassages, weight: float, micro_batch_size: int
    ) -> None:
        self._step, self._model, self._passages = step, model, passages
        self._weight, self._micro_batch_size = weight, micro_batch_size

    def forward_backward(self, batch: Any, iteration: int, loss_scale: float) -> Metrics:
        """See StepModule."""
        metrics = self._step.forward_backward(batch, iteration, loss_scale)
        passages, topology = self._passages, self._passages.topology
        rows, size = passages.rows(iteration)
        tokens, teacher = passages.evidence.tokens(rows, passages.text_format), passages.vectors
        distance = torch.zeros((), device=topology.device)
        # a rank may have no passage of a small batch
        for number, chunk in enumerate(by_length(tokens.lengths, self._micro_batch_size) if len(rows) else []):
            start_dropout(passages.seed, topology, iteration, "distilled", number)
            vectors = self._model.encode_passages(tokens.rows(chunk).to(topology.device))
            target = teacher.vectors_of(torch.from_numpy(rows)[chunk]).to(vectors)
            part = _relative_distances(vectors, target).sum() / size
            (part * (self._weight * loss_scale)).backward()
            distance += part.detach()
        return {**metrics, "distance_from_teacher": Mean(distance, size)}

    def evaluate(self, batch: Any) -> Metrics:
        """See StepModule."""
        return self._step.evaluate(batch)


def _relative_distances(vectors: Tensor, teacher: Tensor) -> Tensor:
    """[n, D], [n, D] -> [n]: for vectors of length 1 it is 2 - 2 cos."""
    return (vectors - teacher).square().sum(1) / teacher.square().sum(1)
