"""Weights before they are rounded: a checkpoint holds those that the run started from, and training goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.models.sharding import layout_of
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.optimizer import Optimizer, OptimizerConfig
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_dpr
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.training.made_with import MadeWith
from megatron_retrieval.training.resume import RunCheckpoints, SaveConfig, SavedModel

SHAPE = tiny_dual_encoder_config()
PRECISIONS = {name: PrecisionConfig(dtype=name, allow_slow_dtype=True) for name in ("bf16", "fp32")}


class _Run:
    """A dual encoder whose passage tower is frozen, with optimizer and checkpoints in `root / name`."""

    def __init__(self, topology: ProcessTopology, root: Path, name: str, precision: str) -> None:
        self.model = DualEncoder(SHAPE, topology, PRECISIONS[precision].on(topology.device), seed=9)
        self.model.towers["passage"].requires_grad_(False)
        self.topology, self.folder, self._precision = topology, root / name, PRECISIONS[precision]
        vocabulary = WordPieceTokenizer(root / "vocab.txt")
        config = DUAL_ENCODER.config(SHAPE, vocabulary, TextFormatConfig())
        self.saved = SavedModel(DUAL_ENCODER.name, config, vocabulary.assets(), {})

    def prepare(self) -> None:
        """Make the optimizer, as training does once the model has its first weights."""
        data_parallel = DataParallelModel(self.model, self.topology)
        self.optimizer = Optimizer(data_parallel, OptimizerConfig(lr=0.01), self._precision, self.topology)
        settings, made_with = SaveConfig(save=str(self.folder)), MadeWith({}, {}, {}, {})
        self.checkpoints = RunCheckpoints(self.model, self.optimizer, self.saved, made_with, settings, self.topology)

    def step(self, iteration: int) -> None:
        """Gradients out of the air, the same on every rank."""
        parameters: Any = dict(self.model.named_parameters())
        for number, name in enumerate(sorted(parameters)):
            if parameters[name].requires_grad:
                stream = torch.Generator().manual_seed(100 * iteration + number)
                gradient = parameters[name].main_grad
                gradient.copy_(torch.randn(gradient.shape, generator=stream))
        self.optimizer.step(0.01)

    def state(self) -> dict[str, Tensor]:
        """All that training goes on from."""
        weights = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        mains = {f"main.{name}": self.optimizer.main_weight(name) for name in weights}
        return {name: values.clone() for name, values in (weights | mains | self.optimizer.state_tensors()).items()}


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def _save_the_start(topology: ProcessTopology, folder: str, precision: str) -> list[str]:
    """Fingerprints: of a model in fp32, of the checkpoint before the first step of a run that starts from it, and of
    one of a run that resumes that one."""
    root = Path(folder)
    vocabulary = WordPieceTokenizer(root / "vocab.txt")
    start = DualEncoder(SHAPE, topology, seed=1)
    path = DUAL_ENCODER.save(root / "start", start, topology, SHAPE, vocabulary, TextFormatConfig())
    found = [DUAL_ENCODER.describe(path)]
    begun = _Run(topology, root, "begun", precision)
    DUAL_ENCODER.start(begun.model, found[0], topology)
    begun.prepare()
    begun.checkpoints.save(0)
    found.append(DUAL_ENCODER.describe(begun.folder))
    resumed = _Run(topology, root, "resumed", precision)
    resumed.prepare()
    resumed.checkpoints.resume(resolve_checkpoint(begun.folder))
    resumed.checkpoints.save(0)
    found.append(DUAL_ENCODER.describe(resumed.folder))
    loaded = [description.load(topology) for description in found]
    assert all(torch.equal(*pair) for model in loaded for pair in zip(model.parameters(), start.parameters()))  # noqa: B905
    return [description.fingerprint for description in found]


def test_a_checkpoint_before_the_first_step_is_the_start(tmp_path: Path) -> None:
    """To the bit, trained and frozen towers alike, though the model computes with rounded weights."""
    write_tiny_dpr(tmp_path)
    for fingerprints in run_on_ranks(_save_the_start, 2, str(tmp_path), "bf16", tensor_model_parallel_size=2):
        assert len(set(fingerprints)) == 1


def _drift_and_save(topology: ProcessTopology, folder: str, precision: str) -> dict[str, Any]:
    """Two steps, replicas that have grown apart, a checkpoint, a third step; and the third step of a resumed run."""
    root = Path(folder)
    run = _Run(topology, root, "run", precision)
    run.prepare()
    for iteration in (1, 2):
        run.step(iteration)
    whole = [name for name, p in run.model.named_parameters() if layout_of(p).dim is None and p.requires_grad]
    parameters, main, moments = (
        dict(run.model.named_parameters()),
        run.optimizer.main_weight,
        run.optimizer.state_tensors(),
    )
    for name in whole:
        main(name).add_(topology.tp_rank / 32)
        parameters[name].data.copy_(main(name))
        for moment in ("exp_avg", "exp_avg_sq"):
            moments[f"{moment}.{name}"].add_(topology.tp_rank / 32)
    run.checkpoints.save(2)
    equalised = {name: values.float() for name, values in run.state().items() if name.endswith(tuple(whole))}
    run.step(3)
    resumed = _Run(topology, root, "run", precision)
    resumed.prepare()
    resumed.checkpoints.resume(resolve_checkpoint(run.folder))
    resumed.step(3)
    return {"equalised": equalised, "goes_on": _equal(run.state(), resumed.state()), "num_whole": len(whole)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replicas_that_grew_apart_are_made_equal_when_they_are_saved(tmp_path: Path, precision: str) -> None:
    """So that a resumed run continues what the one that was not stopped does."""
    write_tiny_dpr(tmp_path)
    first, second = run_on_ranks(_drift_and_save, 2, str(tmp_path), precision, tensor_model_parallel_size=2)
    assert first["num_whole"] > 8
    assert _equal(first["equalised"], second["equalised"])
    assert first["goes_on"]
    assert second["goes_on"]
