"""A model that is trained by adapters: what it starts from becomes the base, which its checkpoints refer to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.checkpoint.store.base import BaseCheckpoint
from megatron_retrieval.checkpoint.store.reader import TensorReader, load_weights
from megatron_retrieval.checkpoint.store.writer import save_checkpoint
from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.data.examples.batches import BatchSource
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.adapters import LoraConfig, adapter_settings, add_adapters, freeze, hold_once, linears
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.training.callbacks import MeasuredTask
from megatron_retrieval.training.resume import SaveConfig, SavedModel
from megatron_retrieval.training.run import TrainingJob, TrainingRun
from megatron_retrieval.training.trainer import Callback
from megatron_retrieval.utils.late_files import seen_late
from megatron_retrieval.utils.logging import get_logger

log = get_logger("lora")

#: folder of a base that a run has made, inside of its folder of checkpoints
BASE = "base"


@dataclass(frozen=True)
class Adapted:
    """What a run has made of a model.

    Attributes:
        settings: of its adapters, for the manifests of its checkpoints.
        base: what these refer to for frozen weights; None: they hold all weights.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    base: BaseCheckpoint | None = None


def adapt_to_train(
    model: nn.Module,
    start: AnyDescription | None,
    lora: LoraConfig,
    saved: SavedModel,
    save: SaveConfig,
    topology: ProcessTopology,
    *,
    seed: int = 0,
    name: str = "",
) -> Adapted:
    """Freeze `model`, which has its first weights unless the run is resumed, and put adapters beside its linears; or
    leave it as it is. Adapters beside weights that are frozen already are so too.

    Adapters of the start are trained further where the settings are theirs. The base is the start, or else, where the
    start has other tensors than the model, a checkpoint that is written to the folder `base` of `--save`.

    Args:
        start: what the run starts from, or is resumed from; None: random weights.
        saved: what checkpoints hold of the model without adapters.
        seed: names the initial weights of adapters.
        name: of the model among several that are trained together.

    Raises:
        ConfigError: there is nothing to adapt, or nothing to train.
    """
    if start is not None and lora.lora_rank is None:
        lora = start.adapters if start.manifest.kind == saved.kind else LoraConfig()
    if not lora.is_active:
        return Adapted()
    if start is None:
        raise ConfigError("--lora-rank: random weights are no base: give --pretrained-checkpoint.")
    if not lora.lora_rank:
        raise ConfigError("--lora-base-dtype nf4 leaves nothing to train without adapters: give --lora-rank.")
    is_resumed = save.resume_folder is not None
    goes_on = not is_resumed and start.adapters == lora and start.manifest.kind == saved.kind
    frozen = [linear for _, linear in linears(model) if not linear.weight.requires_grad]
    freeze(model, lora, topology, fill=not (is_resumed or goes_on))
    base = saved_base(start) if is_resumed or goes_on else None
    if base is None and not is_resumed:
        base = (
            BaseCheckpoint(start.folder)
            if goes_on or _holds(start, model)
            else _new_base(model, lora, saved, save, topology, name)
        )
    add_adapters(model, lora, topology, seed=seed)
    for linear in frozen:  # of a tower that is not to be trained
        if linear.adapter is not None:
            linear.adapter.requires_grad_(False)
    if goes_on:
        load_weights(start.folder, start.manifest, model, topology)
    if not is_resumed:
        hold_once(model)
    num_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    log.info("%s is frozen; adapters of rank %d have %d weights to train", start.folder, lora.lora_rank, num_trained)
    return Adapted(adapter_settings(model, lora), base)


def adapted_run(
    job: TrainingJob,
    model: nn.Module,
    start: AnyDescription | None,
    saved: SavedModel,
    topology: ProcessTopology,
    *,
    held_out: BatchSource[Any] | None = None,
    tasks: Sequence[MeasuredTask] = (),
    callbacks: Callable[[TrainingRun, SavedModel], Iterable[Callback]] = lambda run, saved: (),
) -> TrainingRun:
    """The run of one model, see `adapt_to_train`, ready for its steps: resumed where the job says so.

    Args:
        held_out: see `TrainingRun.evaluate`; `tasks` likewise.
        callbacks: what else is to be done now and then, given the run and what its checkpoints hold.
    """
    training = job.training
    found = adapt_to_train(model, start, training.lora, saved, training.save, topology, seed=training.seed)
    saved = dataclasses.replace(
        saved,
        config={**saved.config, **found.settings},
        identity={**saved.identity, **lora_identity(found.settings)},
        base=found.base or saved.base,
    )
    run = TrainingRun(job, topology, model, saved)
    for callback in callbacks(run, saved):
        run.add(callback)
    run.evaluate(held_out, tasks)
    run.resume()
    return run


def lora_identity(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What a resumed run must not change of its adapters, by flag; see `MadeWith`."""
    return {f"{prefix}--{name}": settings.get(name) for name in to_flat_dict(LoraConfig())}


def saved_base(start: AnyDescription) -> BaseCheckpoint | None:
    """The base that a checkpoint refers to."""
    reference = start.manifest.base
    return None if reference is None else BaseCheckpoint(start.folder / reference.path)


def _holds(start: AnyDescription, model: nn.Module) -> bool:
    """Whether a checkpoint has the tensors that are frozen in `model`."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return frozen <= TensorReader(start.folder, start.manifest).names() and not start.adapters.is_active


def _new_base(
    model: nn.Module, lora: LoraConfig, saved: SavedModel, save: SaveConfig, topology: ProcessTopology, name: str
) -> BaseCheckpoint | None:
    """The frozen model as a checkpoint by itself; None where none are saved."""
    if save.save is None:
        return None
    without = dataclasses.replace(lora, lora_rank=0, lora_alpha=LoraConfig.lora_alpha, lora_dropout=0.0)
    config = {**saved.config, **adapter_settings(model, without)}
    folder = save_checkpoint(
        Path(save.save) / BASE / name, model, topology, kind=saved.kind, config=config, assets=saved.assets
    )
    return seen_late(lambda: BaseCheckpoint(folder))
