"""What the tokens of documents cost a language model that reads neighbours, in nats, and bits per byte of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_retrieval.data.examples.neighbour_arms import Choose
from megatron_retrieval.data.examples.retro_windows import RetroWindows
from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.evaluation.intervals import Interval, ratio_interval
from megatron_retrieval.models.retro import Retro
from megatron_retrieval.parallel.collectives import all_reduce_sum
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.parallel.vocab_loss import vocab_parallel_cross_entropy
from megatron_retrieval.types.neighbours import ChunkedTexts
from megatron_retrieval.types.tokens import by_length, to_device
from megatron_retrieval.utils.progress import progress_bar

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Arm:
    """A way to use a model.

    Attributes:
        choose: which rows of the database are read for chunks; None: nothing is.
        database: whose rows they are.
        num_neighbours: k.
    """

    choose: Choose | None
    database: ChunkStore
    num_neighbours: int

    def texts(self, texts: ChunkedTexts, rows: NDArray[np.int64]) -> ChunkedTexts:
        """The texts with what is read for the chunks `rows`, to which their neighbours belong."""
        if self.choose is None:
            return texts
        ids, is_real = self.database.values(self.choose(rows, self.num_neighbours))
        found = replace(texts.neighbours, ids=torch.from_numpy(ids), lengths=torch.from_numpy(is_real.sum(2)))
        return replace(texts, neighbours=found)


@torch.no_grad()
def token_costs(
    model: Retro, windows: RetroWindows, arms: Mapping[str, Arm], batch_size: int, topology: ProcessTopology
) -> dict[str, Floats]:
    """-log p of every predicted token by arm, [windows.num_labels] nats, equal on all ranks; a collective over them.

    Args:
        model: in evaluation mode.
        batch_size: windows in one forward pass. Batches do not depend on the number of ranks.
    """
    costs = {name: torch.zeros(windows.num_labels, dtype=torch.float64) for name in arms}
    with progress_bar("scoring", "windows", len(windows), visible=topology.is_main) as bar:
        for number, index in enumerate(by_length(windows.lengths, batch_size)):
            if number % topology.dp_size == topology.dp_rank:
                texts, places, rows = windows.texts(index.numpy())
                for name, arm in arms.items():
                    costs[name][torch.from_numpy(places)] = _costs(model, arm.texts(texts, rows), topology).double()
            bar.update(len(index))
    device = topology.device
    summed = {name: all_reduce_sum(values.to(device), topology.groups.dp) for name, values in costs.items()}
    return {name: values.cpu().numpy() for name, values in summed.items()}


def _costs(model: Retro, texts: ChunkedTexts, topology: ProcessTopology) -> Tensor:
    """[M] of the labels, in the texts' order, on the CPU."""
    places = (texts.labels.flatten() >= 0).nonzero()[:, 0]
    labels = to_device(texts.labels.flatten()[places], topology.device)
    logits = model(texts.tokens.to(topology.device), to_device(places, topology.device), texts.neighbours)
    return vocab_parallel_cross_entropy(logits, labels).cpu()


@dataclass(frozen=True)
class ChunkCosts:
    """The scored chunks of documents.

    Attributes:
        rows: [C] of the store, ascending.
        groups: [C] the unit of intervals that each belongs to.
        num_bytes: [C] of their text that is predicted.
        shared: [C] most tokens in a row that each has in common with one of its own neighbours.
        nats: [C] by arm.
    """

    rows: NDArray[np.int64]
    groups: NDArray[np.int64]
    num_bytes: Floats
    shared: NDArray[np.int64]
    nats: Mapping[str, Floats]

    def where(self, chosen: NDArray[np.bool_]) -> ChunkCosts:
        """Some of them."""
        nats = {name: values[chosen] for name, values in self.nats.items()}
        groups, num_bytes = self.groups[chosen], self.num_bytes[chosen]
        return ChunkCosts(self.rows[chosen], groups, num_bytes, self.shared[chosen], nats)

    def bits_per_byte(self, arm: str) -> Interval:
        """Bits per byte of text with its interval over groups of documents."""
        return self._ratio(self.nats[arm])

    def difference(self, baseline: str, candidate: str) -> Interval:
        """Bits per byte of `candidate` less those of `baseline` on the same texts; below zero it is the better one."""
        return self._ratio(self.nats[candidate] - self.nats[baseline])

    def _ratio(self, nats: Floats) -> Interval:
        _, units = np.unique(self.groups, return_inverse=True)
        bits = np.bincount(units, nats) / math.log(2)
        return ratio_interval(bits, np.bincount(units, self.num_bytes).astype(np.float64))


def chunk_costs(
    chunks: ChunkStore, windows: RetroWindows, costs: Mapping[str, Floats], shared: Sequence[int] | NDArray[np.int64]
) -> ChunkCosts:
    """Sum the costs of tokens over chunks.

    Args:
        shared: see `ChunkCosts`, of all rows of the store.
    """
    rows, places = np.unique(windows.rows, return_inverse=True)
    documents = chunks.document_of(rows)
    of_first_token = np.where(rows == chunks.documents[documents], chunks.first_bytes[documents], 0)
    num_bytes = chunks.chunk_bytes[rows].astype(np.float64) - of_first_token
    nats = {name: np.bincount(places, values, len(rows)).astype(np.float64) for name, values in costs.items()}
    return ChunkCosts(rows, chunks.groups[documents].astype(np.int64), num_bytes, np.asarray(shared)[rows], nats)
