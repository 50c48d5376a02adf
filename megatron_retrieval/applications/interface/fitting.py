"""Training on pairs: what `Retriever.fit` does, by the recipe of `train retriever`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_retrieval.applications.interface.opening import Scratch
from megatron_retrieval.applications.interface.texts import PassageLike, write_pairs
from megatron_retrieval.config.parser import config_of
from megatron_retrieval.parallel.collectives import on_first_rank
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.retriever_finetune import RetrieverFinetuneConfig, build
from megatron_retrieval.training.training_run import run_training


def fit_pairs(
    pairs: Sequence[Sequence[PassageLike]],
    start: Path,
    folder: Path,
    scratch: Scratch,
    topology: ProcessTopology,
    **settings: Any,
) -> Path:
    """Train a dual encoder; all ranks call this together.

    Args:
        pairs: see `write_pairs`.
        start: its checkpoint.
        folder: for curves and checkpoints.
        settings: flags of `train retriever`.

    Returns:
        The folder of its checkpoints.

    Raises:
        ConfigError: a pair is none, or a setting is unknown or out of range.
    """
    data = scratch.new("pairs.json")
    on_first_rank(lambda: write_pairs(data, pairs), topology.world_group)
    defaults = {
        "num_hard_negatives": int(any(len(pair) > 2 for pair in pairs)),
        "tensorboard": False,
        "pretrained_checkpoint": start,
        "train_data": [data],
        "output_dir": folder,
        "save": folder / "checkpoints",
    }
    run_training(build, config_of(RetrieverFinetuneConfig, **{**defaults, **settings}), topology)
    return folder / "checkpoints"
