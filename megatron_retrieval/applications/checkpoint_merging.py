"""One checkpoint out of several of one shape, or out of one with adapters."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from megatron_retrieval.applications.merge_sweep import MergeSweepConfig, sweep_shares
from megatron_retrieval.checkpoint.kinds.mean_of_weights import save_mean
from megatron_retrieval.checkpoint.kinds.registry import MODEL_KINDS, describe
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology
from megatron_retrieval.utils.logging import get_logger


@dataclass(kw_only=True, frozen=True)
class MergeConfig:
    """Write the mean of checkpoints of one shape as a checkpoint; of a single one, with its adapters merged. Several
    means can be measured, to keep the best (--sweep)."""

    checkpoints: tuple[Path, ...]
    """Folders of the checkpoints; the first one gives settings and vocabulary."""
    weights: tuple[float, ...] = ()
    """Share of each in the mean; default: equal ones. They sum to 1."""
    output: Path
    """Folder of the checkpoint to write."""
    sweep: MergeSweepConfig = field(default_factory=MergeSweepConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Processes."""

    def __post_init__(self) -> None:
        if self.weights and (len(self.weights) != len(self.checkpoints) or abs(sum(self.weights) - 1) > 1e-6):
            given = " ".join(map(str, self.weights))
            raise ConfigError(f"--weights {given}: give one for each checkpoint; together they are 1.")
        if self.sweep.sweep is not None and (self.weights or len(self.checkpoints) < 2):
            raise ConfigError("--sweep: it takes the place of --weights, and needs two checkpoints or more.")


def main(config: MergeConfig, topology: ProcessTopology) -> None:
    """Write the mean, or the means and what they find."""
    found = [describe(path, MODEL_KINDS) for path in config.checkpoints]
    if config.sweep.sweep is None:
        path = save_mean(found, config.output, topology, config.weights)
    else:
        path = sweep_shares(config.sweep, found, config.output, topology)
    get_logger().info("merged %s into %s", ", ".join(map(str, config.checkpoints)), path)
