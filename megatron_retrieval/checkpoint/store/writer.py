"""Writes checkpoints: every rank its shard, the folder named only once it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec

from torch import Tensor, nn

from megatron_retrieval.checkpoint.store import folders
from megatron_retrieval.checkpoint.store.base import BaseCheckpoint
from megatron_retrieval.checkpoint.store.model_writer import Described, ModelWriter, Written
from megatron_retrieval.errors import CheckpointError, MegatronRetrievalError
from megatron_retrieval.parallel.collectives import any_rank, gather_objects, on_first_rank
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.disk import writing

P = ParamSpec("P")


@dataclass(frozen=True)
class ModelPart:
    """A model inside of another, saved as a checkpoint by itself under its attribute's name.

    Attributes:
        config: gives what is needed to build the part again, as it stands at the time of saving.
        assets: contents of further files, by name.
        base: what the part started from; frozen weights that are still the base's are left out. None: all are saved.
    """

    kind: str
    config: Callable[[], dict[str, Any]]
    assets: Mapping[str, bytes]
    base: BaseCheckpoint | None = None


def begin_checkpoint(
    directory: str | Path,
    model: nn.Module,
    topology: ProcessTopology,
    *,
    kind: str,
    config: dict[str, Any],
    assets: Mapping[str, bytes],
    iteration: int = 0,
    weight_of: Callable[[str], Tensor] | None = None,
    optimizer_tensors: Mapping[str, Tensor] | None = None,
    state_tensors: Mapping[str, Tensor] | None = None,
    training: dict[str, Any] | None = None,
    keep_last: int | None = None,
    is_best: bool = False,
    parts: Mapping[str, ModelPart] | None = None,
    base: BaseCheckpoint | None = None,
    from_copies: bool = False,
) -> UnfinishedCheckpoint:
    """Collect what a checkpoint is to hold; all ranks call this together.

    Args:
        directory: the folder of checkpoints (`--save`).
        assets: contents of further files, by name; not paths, since a run may prune the checkpoint that they came from.
        weight_of: gives a parameter's weights as they are to be stored, where the model holds rounded ones.
        optimizer_tensors: moments named `<moment>.<parameter>`.
        state_tensors: what else a run continues from, the same on all ranks; see `read_state_tensors`.
        keep_last: remove all but this many newest whole checkpoints; None keeps all.
        is_best: it is the best one so far, which stays as long as none is better.
        parts: submodules of `model` by attribute, each saved as a checkpoint that can be used without the whole.
        base: as a part's, of what is in no part.
        from_copies: copy all tensors into CPU memory, so that they may change before they are written.

    Returns:
        What writes it; `latest_checkpointed_iteration.txt` names it only once it is whole and on the disk.

    Raises:
        DiskError: on all ranks, where the folder cannot be made.
    """
    final, parts = folders.folder_of(Path(directory), iteration), parts or {}
    on_first_rank(partial(_begin, final, list(parts)), topology.world_group)
    weights = {name: weight_of(name) if weight_of else p.detach() for name, p in model.named_parameters()}
    writers, hidden = [], folders.partial_of(final)
    for name, part in parts.items():
        own = {key.removeprefix(f"{name}."): weights.pop(key) for key in list(weights) if key.startswith(f"{name}.")}
        described = Described(part.kind, part.config(), part.assets, iteration, part.base)
        writers.append(ModelWriter(hidden / name, final / name, model.get_submodule(name), described, own, topology))
    described = Described(kind, config, assets, iteration, base, training or {})
    writers.append(ModelWriter(hidden, final, model, described, weights, topology, optimizer_tensors, state_tensors))
    if from_copies:
        for writer in writers:
            writer.copy_tensors()
    publish = partial(folders.publish, hidden, final, iteration, keep_last, is_best=is_best)
    return UnfinishedCheckpoint(final, publish, writers, list(parts), topology)


class UnfinishedCheckpoint:
    """A checkpoint on its way to the disk."""

    def __init__(
        self,
        final: Path,
        publish: Callable[[], None],
        writers: Sequence[ModelWriter],
        parts: Sequence[str],
        topology: ProcessTopology,
    ) -> None:
        self._final, self._publish_whole = final, publish
        self._writers, self._parts, self._topology = writers, parts, topology
        self._error: Exception | None = None
        self._written: Future[None] | None = None

    def write(self) -> None:
        """Write this rank's shards; without exchange between ranks, so that a thread may do it. `finish` says on all
        ranks what the disk refuses."""
        try:
            for writer in self._writers:
                writer.write()
        except (OSError, MegatronRetrievalError) as error:
            self._error = error

    def begin_writing(self) -> None:
        """`write` in a thread, for which `finish` waits, as does the end of the process."""
        thread = ThreadPoolExecutor(1, "checkpoint")
        self._written = thread.submit(self.write)
        thread.shutdown(wait=False)

    def is_written(self) -> bool:
        """Whether all ranks have done what they began; all ranks call this together."""
        is_busy = self._written is not None and not self._written.done()
        return not any_rank(is_busy, self._topology.world_group, self._topology.device)

    def finish(self) -> Path:
        """Let the checkpoint appear; all ranks call this together, after `write` or `begin_writing`.

        Returns:
            The folder of this checkpoint.

        Raises:
            CheckpointError, DiskError: on all ranks, where one of them could not write; nothing of the checkpoint is
                left, and older ones are as they were.
        """
        if self._written is not None:
            self._written.result()
        group = self._topology.world_group
        problems = [problem for problem in gather_objects(str(self._error or ""), group) if problem]
        written = gather_objects([writer.written for writer in self._writers], group)
        on_first_rank(partial(self._publish, problems, written), group)
        if problems:
            raise CheckpointError(problems[0]) from self._error
        return self._final

    def _publish(self, problems: Sequence[str], written: Sequence[Sequence[Written]]) -> None:
        """On rank 0: what all ranks wrote becomes one checkpoint."""
        hidden = folders.partial_of(self._final)
        if problems:
            shutil.rmtree(hidden, ignore_errors=True)
            return
        try:
            with writing(self._final):
                fingerprints: dict[str, str] = {}
                for number, writer in enumerate(self._writers):
                    # the whole comes last, and it alone has parts
                    parts = fingerprints if number == len(self._parts) else {}
                    fingerprint = writer.seal([of_rank[number] for of_rank in written], parts)
                    fingerprints |= dict(zip(self._parts[number : number + 1], [fingerprint], strict=False))
                self._publish_whole()
        except MegatronRetrievalError:
            shutil.rmtree(hidden, ignore_errors=True)
            raise


def _at_once(begin: Callable[P, UnfinishedCheckpoint]) -> Callable[P, Path]:
    @wraps(begin)
    def save(*args: P.args, **settings: P.kwargs) -> Path:
        checkpoint = begin(*args, **settings)
        checkpoint.write()
        return checkpoint.finish()

    return save


#: `begin_checkpoint`, `write` and `finish`; returns the folder of the checkpoint
save_checkpoint = _at_once(begin_checkpoint)


def _begin(final: Path, parts: Sequence[str]) -> None:
    with writing(final):
        folders.begin(final, parts)
