"""Hard negatives that the encoder in training finds itself, again with every version of the index.

ANCE (Xiong et al. 2021, arXiv 2007.00808): of what an index of some steps ago holds nearest to a question, all that is
no positive and does not answer may become its hard negative, until the next version.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.marks import INPUT
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.evaluation.retriever_task import retrieve_share
from megatron_retrieval.index.exact.sharded import ShardedIndex
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.collectives import gather_objects
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.retriever import Retriever
from megatron_retrieval.training.steps.step import evaluation_mode
from megatron_retrieval.training.trainer import Callback, Trainer
from megatron_retrieval.types.tokens import TokenBatch
from megatron_retrieval.utils.logging import get_logger

log = get_logger("index")


@dataclass(kw_only=True, frozen=True)
class MinedNegativesConfig(Checked):
    """Hard negatives that are mined while the encoder learns (ANCE)."""

    evidence: Path | None = field(default=None, metadata=INPUT)
    """Folder of the evidence. Where it is given, hard negatives are passages that the encoder in training finds, not
    those of --train-data, and they are searched for anew with every version of the index (--index-refresh-interval)."""
    mined_depth: PositiveInt = 100
    """Hard negatives are drawn among so many passages that are found first, without positives and passages that contain
    an answer."""


class MinedExamples(Protocol):
    """Questions whose hard negatives can be exchanged."""

    def __len__(self) -> int: ...

    def all_questions(self) -> TokenBatch:
        """All of them, in order."""
        ...

    def mine(self, rows: Rows) -> None:
        """Draw hard negatives from these rows of the evidence from now on.

        Args:
            rows: [questions, depth], best first; -1 where there are fewer.
        """
        ...


class NegativeMiner(Callback):
    """Mines for all questions whenever the index changes; stands before the `IndexRefresher` that calls `swap`.

    Checkpoints keep what was found, so that a resumed run draws the same.
    """

    resume_name = "mined negatives"

    def __init__(
        self,
        config: MinedNegativesConfig,
        model: DualEncoder,
        examples: MinedExamples,
        topology: ProcessTopology,
        micro_batch_size: int,
    ) -> None:
        self._config, self._model, self._examples, self._topology = config, model, examples, topology
        self._micro_batch_size = micro_batch_size
        self._rows: Tensor | None = None
        self._is_restored = False
        self._trainer: Trainer | None = None

    def on_start(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def swap(self, index: ShardedIndex) -> None:
        """Mine in this index, by the encoder as it is; a collective over all ranks. What a resumed run found before
        stays until its index changes."""
        if self._is_restored:
            self._is_restored = False
            return
        started = time.monotonic()
        self._take(self._found(index))
        seconds = time.monotonic() - started
        log.info("mined hard negatives of %s questions in %.1f s", f"{len(self._examples):,}", seconds)
        if self._trainer is not None:
            self._trainer.renew_batches()

    def _found(self, index: ShardedIndex) -> Tensor:
        """[questions, depth] int32, rows of the evidence, on every rank."""
        depth = min(self._config.mined_depth, index.num_rows)
        with evaluation_mode(self._model), torch.no_grad():
            found = retrieve_share(
                self._examples.all_questions(),
                self._model.encode_queries,
                Retriever(index),
                self._topology,
                depth=depth,
                micro_batch_size=self._micro_batch_size,
            )
        rows = torch.full((len(self._examples), depth), -1, dtype=torch.int32)
        for positions, own in gather_objects((found.positions, found.result.rows.int()), self._topology.world_group):
            rows[positions] = own
        return rows

    def _take(self, rows: Tensor) -> None:
        self._rows = rows
        self._examples.mine(rows.numpy())

    def state(self) -> dict[str, Any]:
        """See Resumable."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """See Resumable."""

    def state_tensors(self) -> dict[str, Tensor]:
        """See HoldsTensors."""
        return {} if self._rows is None else {"rows": self._rows}

    def restore_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See HoldsTensors."""
        if "rows" in tensors and len(tensors["rows"]) == len(self._examples):
            self._take(tensors["rows"])
            self._is_restored = True
