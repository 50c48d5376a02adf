"""Passages of batches before, by the vectors that they had then: further negatives where memory is small.

Cross-batch memory (Wang et al. 2020, arXiv 1912.06798): encoders drift slowly, so that vectors of some steps ago still
stand for their passages. No gradient flows into them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.parallel.collectives import gather_rows
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.trainer import Callback
from megatron_retrieval.types.contrastive import ContrastiveBatch, Numbers
from megatron_retrieval.types.tokens import to_device

#: the numbers of questions [n] and of passages [M] -> [n, M] bool, where a passage is no negative of the question
FalseNegatives = Callable[[Rows, Rows], Any]


class PassageMemory(Callback):
    """Remembers the passages of the last batches, of all ranks on every rank.

    Args:
        num_batches: that are remembered.
        start: steps after which they are used.
        dimension: D of the vectors.
    """

    resume_name = "passage memory"

    def __init__(
        self, num_batches: int, start: int, dimension: int, false_negatives: FalseNegatives, topology: ProcessTopology
    ) -> None:
        self._start, self._false_negatives, self._topology = start, false_negatives, topology
        self._batches: deque[tuple[Tensor, Tensor]] = deque(maxlen=num_batches)
        self._nothing = torch.empty(0, dimension, device=topology.device)

    def vectors(self, iteration: int) -> Tensor:
        """[M, D] float32, of M remembered passages; none before the start."""
        if iteration < self._start or not self._batches:
            return self._nothing
        return torch.cat([vectors for vectors, _ in self._batches])

    def excluded(self, numbers: Numbers) -> Tensor:
        """[n, M] bool, where a remembered passage is no negative of one of this rank's questions."""
        questions = numbers.questions.numpy()
        masks = [self._false_negatives(questions, passages.numpy()) for _, passages in self._batches]
        return torch.from_numpy(np.concatenate(masks, 1)).to(self._topology.device)

    def add(self, vectors: Tensor, batch: ContrastiveBatch) -> None:
        """Remember a batch; a collective.

        Args:
            vectors: [P, D] of the passages of all ranks.
        """
        assert batch.numbers is not None, "the data gives passages no numbers"
        numbers = gather_rows(batch.numbers.passages.to(vectors.device), self._topology.groups.dp).cpu()
        places = (numbers >= 0).nonzero()[:, 0]
        # a step that is skipped since its loss is not finite must not ruin those that remember it
        kept = vectors.detach()[to_device(places, vectors.device)].nan_to_num(0.0, 0.0, 0.0)
        self._batches.append((kept, numbers[places]))

    def state(self) -> dict[str, Any]:
        """See Resumable."""
        return {"sizes": [len(numbers) for _, numbers in self._batches]}

    def state_tensors(self) -> dict[str, Tensor]:
        """See HoldsTensors."""
        if not self._batches:
            return {}
        vectors, numbers = zip(*self._batches, strict=True)
        return {"vectors": torch.cat(vectors), "numbers": torch.cat(numbers)}

    def restore(self, state: dict[str, Any]) -> None:
        """See Resumable."""
        self._sizes = state["sizes"]

    def restore_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See HoldsTensors."""
        if self._sizes:
            vectors, numbers = (tensors[name].split(self._sizes) for name in ("vectors", "numbers"))
            self._batches.extend((v.to(self._topology.device), n) for v, n in zip(vectors, numbers, strict=True))
