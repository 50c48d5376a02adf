"""Memory and time of a training run before it starts: counts out of its settings, rates assumed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from megatron_retrieval.applications.plan import costs
from megatron_retrieval.applications.plan.config import RatesConfig
from megatron_retrieval.applications.plan.retro_costs import (
    causal_parameters,
    reading_parameters,
    retro_parameters,
    step_activation_bytes,
    step_bytes,
    step_products,
)
from megatron_retrieval.applications.plan.units import duration, size
from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.checkpoint.store.manifest import read_manifest
from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.errors import CheckpointError, ConfigError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.dual_encoder import DualEncoderConfig
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.recipes.retro_pretraining import RetroPretrainingConfig
from megatron_retrieval.training.run import TrainingConfig

#: of a forward pass, for each weight that a token meets
_OPERATIONS = 2
#: settings that name a checkpoint whose weights are trained
_STARTS = ("pretrained-checkpoint", "retriever", "reader")


def training_estimate(config: Any, training: TrainingConfig, num_processes: int) -> list[str]:
    """What a run takes, a line each; what cannot be known before a checkpoint is there is said."""
    found = _retro_needs(config) if isinstance(config, RetroPretrainingConfig) else _needs(config, training)
    if found is None:
        return ["memory and hours: not known before the checkpoint that training starts from is there"]
    tensor_parallel = training.parallel.tensor_model_parallel_size
    copies = max(1, num_processes // tensor_parallel)
    tokens = tokens_per_example(to_flat_dict(config))
    rates = RatesConfig()
    rate = rates.gpu_operations_per_second * num_processes
    seconds = _OPERATIONS * found.products * tokens * training.global_batch_size / rate
    ranks = f"{num_processes} processes, {copies} data-parallel, {tensor_parallel} tensor-parallel"
    gpus = f"{num_processes} GPUs of {rates.peak_teraflops:.0f} teraflops at {rates.utilisation:.0%}"
    step = f"{tokens:,} tokens an example at most, {tokens * training.global_batch_size:,} a step"
    lines = [
        f"memory: {found.weights}",
        f"memory of a process: {size(found.state_bytes / tensor_parallel)} with gradients and moments, and "
        f"{found.activations} ({ranks})",
        f"time: {step}; {duration(1000 * seconds)} for 1,000 steps on {gpus}",
    ]
    if training.train_iters:
        lines.append(f"all {training.train_iters:,} steps: {duration(training.train_iters * seconds)}")
    return lines


@dataclass(frozen=True)
class _Needs:
    """What a step needs.

    Attributes:
        weights: how many there are, in words; of `activations` likewise the bytes.
        state_bytes: weights, gradients and moments.
        products: multiplications of a token with weights, forward and backward.
    """

    weights: str
    activations: str
    state_bytes: int
    products: float


def _needs(config: Any, training: TrainingConfig) -> _Needs | None:
    """None where a checkpoint is not there."""
    if (weights := num_weights(config)) is None:
        return None
    passes = costs.TRAINING_PASSES + (costs.AGAIN_PASSES if to_flat_dict(config).get("gradient-caching") else 0)
    state = costs.training_state_bytes(weights, half_precision=training.precision.is_half)
    return _Needs(f"{weights / 1e6:,.1f} million weights", "activations", state, passes * weights / _towers(config))


def _retro_needs(config: RetroPretrainingConfig) -> _Needs | None:
    """Likewise; beside a frozen language model, what reads neighbours is trained alone."""
    if config.pretrained_checkpoint is not None and not Path(config.pretrained_checkpoint).exists():
        return None
    shape, is_frozen, half = config.model, config.freezes, config.training.precision.is_half
    trained = reading_parameters(shape) if is_frozen else retro_parameters(shape)
    frozen = f", {causal_parameters(shape) / 1e6:,.1f} million frozen ones" if is_frozen else ""
    k = config.data.retro_num_neighbors if config.data.retro_add_retriever else 0
    tokens = config.step.micro_batch_size * config.data.seq_length
    kept = step_activation_bytes(shape, tokens, k, is_frozen=is_frozen, half=half)
    return _Needs(
        f"{trained / 1e6:,.1f} million weights{frozen}",
        f"{size(kept)} of activations",
        step_bytes(shape, is_frozen=is_frozen, half=half),
        step_products(shape, k, is_frozen=is_frozen),
    )


def num_weights(config: Any) -> int | None:
    """Weights that a job trains or holds: those of its shapes, or of the checkpoints that it starts from; None where
    those are not there."""
    settings = to_flat_dict(config)
    starts = [settings[flag] for flag in _STARTS if settings.get(flag)]
    stored = [_stored_weights(Path(start)) for start in starts if Path(start).exists()]
    if starts and len(stored) == len(starts):
        return sum(stored)
    shapes = [count for shape in _shapes(config) if (count := _shape_weights(shape)) is not None]
    return sum(shapes) if shapes else None


def tokens_per_example(settings: dict[str, Any]) -> int:
    """Tokens of an example at full length: a text; a question with its passages; what a reader reads of each."""
    tokens = settings.get("seq-length") or settings.get("query-seq-length") or 0
    passages = settings.get("num-passages") or 1 + (settings.get("num-hard-negatives") or 0)
    lengths = ("retriever-seq-length", "reader-seq-length", "pair-seq-length")
    return tokens + passages * sum(settings.get(length) or 0 for length in lengths)


def _towers(config: Any) -> int:
    """The number of encoders of which a token passes through one."""
    shape = getattr(config, "model", None)
    return 2 if isinstance(shape, DualEncoderConfig) and not shape.biencoder_shared_query_context_model else 1


def _shapes(config: Any) -> Iterator[Any]:
    """The shapes of models in a configuration, the outermost ones."""
    if isinstance(config, DualEncoderConfig | BertConfig | T5Config):
        yield config
    else:
        for field in dataclasses.fields(config):
            if dataclasses.is_dataclass(value := getattr(config, field.name)):
                yield from _shapes(value)


def _shape_weights(shape: DualEncoderConfig | BertConfig | T5Config) -> int | None:
    if isinstance(shape, T5Config):
        return costs.t5_parameters(shape)
    try:
        return costs.bert_parameters(shape) if isinstance(shape, BertConfig) else costs.dual_encoder_parameters(shape)
    except ConfigError:  # another family of encoders
        return None


def _stored_weights(path: Path) -> int:
    try:
        folder = resolve_checkpoint(path)
    except CheckpointError:
        return 0
    base, total = read_manifest(folder).base, 0
    if base is not None:  # holds what the checkpoint does not
        total = _stored_weights(folder / base.path)
    for file in sorted(folder.rglob("model.*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 - it is no mapping
    return total
