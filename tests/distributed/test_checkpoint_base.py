"""Checkpoints that share frozen weights with the one that they started from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.store.base import BaseCheckpoint
from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.checkpoint.store.manifest import read_manifest
from megatron_retrieval.checkpoint.store.writer import ModelPart, save_checkpoint
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.optimizer import Optimizer, OptimizerConfig
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_dpr
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.training.made_with import MadeWith
from megatron_retrieval.training.resume import RunCheckpoints, SaveConfig, SavedModel

SHAPE = tiny_dual_encoder_config()
KIND = DUAL_ENCODER.name
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CONFIG = DUAL_ENCODER.config(SHAPE, WordPieceTokenizer("vocab.txt", tokens=TOKENS), TextFormatConfig())
QUERY, PASSAGE = "towers.query.", "towers.passage."
Weights = dict[str, Tensor]


def _save(topology: ProcessTopology, root: Path, name: str, model: nn.Module, **settings: Any) -> Path:
    assets = {"vocab.txt": (root / "vocab.txt").read_bytes()}
    return save_checkpoint(root / name, model, topology, kind=KIND, config=CONFIG, assets=assets, **settings)


def _save_base(topology: ProcessTopology, folder: str, seed: int, name: str) -> None:
    _save(topology, Path(folder), name, DualEncoder(SHAPE, topology, seed=seed))


def _started(topology: ProcessTopology, root: Path, dtype: torch.dtype = torch.float32) -> DualEncoder:
    """A model that started from the base: the passage tower is frozen, the query tower has changed."""
    model = DUAL_ENCODER.load(root / "base", topology, dtype).model
    model.towers["passage"].requires_grad_(False)
    with torch.no_grad():
        for parameter in model.towers["query"].parameters():
            parameter.add_(1)
    return model


def _save_both(topology: ProcessTopology, folder: str, dtype: str = "float32") -> tuple[list[str], Weights]:
    """The fingerprints of a model that is saved with its base and whole, and its full weights."""
    root = Path(folder)
    model = _started(topology, root, getattr(torch, dtype))
    shared = _save(topology, root, "shared", model, base=BaseCheckpoint(root / "base"))
    whole = _save(topology, root, "whole", model)
    weights = {name: gather_full(p, topology) for name, p in model.named_parameters()}
    return [read_manifest(path).fingerprint for path in (shared, whole)], weights


def _load(topology: ProcessTopology, folder: str, name: str) -> Weights:
    model = DUAL_ENCODER.load(Path(folder) / name, topology).model
    return {name: gather_full(p, topology) for name, p in model.named_parameters()}


def _refused(topology: ProcessTopology, folder: str, name: str) -> str:
    try:
        DUAL_ENCODER.load(Path(folder) / name, topology)
    except CheckpointError as error:
        return str(error)
    return ""


def _equal(found: Weights, expected: Weights) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base beside room for what is saved over it."""
    write_tiny_dpr(tmp_path)
    run_on_ranks(_save_base, 1, str(tmp_path), 1, "base")
    return tmp_path


@pytest.mark.parametrize("tp_size", [1, 2])
def test_only_what_is_trained_is_saved(folder: Path, tp_size: int) -> None:
    """Saved at one layout, loaded at the others; its fingerprint is that of the same model saved whole."""
    ranks = run_on_ranks(_save_both, tp_size, str(folder), tensor_model_parallel_size=tp_size)
    (shared, whole), expected = ranks[0]
    assert shared == whole
    for rank in range(tp_size):
        path = resolve_checkpoint(folder / "shared") / f"model.tp{rank}of{tp_size}.safetensors"
        assert load_file(path).keys() == {name for name in expected if name.startswith(QUERY)}
    for num_ranks in (1, 2):
        for found in run_on_ranks(_load, num_ranks, str(folder), "shared", tensor_model_parallel_size=num_ranks):
            assert _equal(found, expected)


def test_fingerprints_are_those_of_other_layouts(folder: Path) -> None:
    ((single, _),) = run_on_ranks(_save_both, 1, str(folder))
    for fingerprints, _ in run_on_ranks(_save_both, 2, str(folder), tensor_model_parallel_size=2):
        assert fingerprints == single
    for fingerprints, _ in run_on_ranks(_save_both, 2, str(folder)):
        assert fingerprints == single


def test_another_base_is_refused(folder: Path) -> None:
    run_on_ranks(_save_both, 1, str(folder))
    base = resolve_checkpoint(folder / "base")
    wanted = read_manifest(base).fingerprint
    base.rename(folder / "elsewhere")
    (message,) = run_on_ranks(_refused, 1, str(folder), "shared")
    assert f"shares weights of the {KIND} {wanted} in {base}, where no checkpoint is" in message
    run_on_ranks(_save_base, 1, str(folder), 2, "base")
    found = read_manifest(base).fingerprint
    (message,) = run_on_ranks(_refused, 1, str(folder), "shared")
    assert f"shares weights of the {KIND} {wanted}, but {base} holds the {KIND} {found}" in message


def _save_relative(topology: ProcessTopology, folder: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        model = _started(topology, Path())
        _save(topology, Path(), "shared", model, base=BaseCheckpoint("base"))


def test_a_relative_path_moves_with_the_checkpoints(folder: Path) -> None:
    run_on_ranks(_save_relative, 1, str(folder))
    reference = read_manifest(resolve_checkpoint(folder / "shared")).base
    assert reference is not None
    assert reference.path == "../../base/iter_0000000"
    moved = folder.with_name("moved")
    folder.rename(moved)
    (found,) = run_on_ranks(_load, 1, str(moved), "shared")
    (base,) = run_on_ranks(_load, 1, str(moved), "base")
    assert all(torch.equal(found[name], base[name]) for name in base if name.startswith(PASSAGE))


def _save_changed(topology: ProcessTopology, folder: str) -> tuple[str, Weights]:
    """A frozen parameter is not what the base has."""
    root = Path(folder)
    model = _started(topology, root)
    changed, parameter = next((name, p) for name, p in model.named_parameters() if name.startswith(PASSAGE))
    with torch.no_grad():
        parameter.add_(1)
    _save(topology, root, "shared", model, base=BaseCheckpoint(root / "base"))
    return changed, {name: gather_full(p, topology) for name, p in model.named_parameters()}


def test_what_the_base_does_not_hold_is_saved(folder: Path) -> None:
    ((changed, expected),) = run_on_ranks(_save_changed, 1, str(folder))
    saved = load_file(resolve_checkpoint(folder / "shared") / "model.tp0of1.safetensors")
    assert saved.keys() == {changed, *(name for name in expected if name.startswith(QUERY))}
    (found,) = run_on_ranks(_load, 1, str(folder), "shared")
    assert _equal(found, expected)


def test_frozen_weights_keep_their_dtype(folder: Path) -> None:
    """Saved whole, a half-precision model takes half the room; with a base, the base's weights are not rounded."""
    (((shared, whole), expected),) = run_on_ranks(_save_both, 1, str(folder), "bfloat16")
    assert shared != whole
    saved = load_file(resolve_checkpoint(folder / "whole") / "model.tp0of1.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    (found,) = run_on_ranks(_load, 1, str(folder), "whole")
    assert _equal(found, {name: weight.float() for name, weight in expected.items()})
    (found,) = run_on_ranks(_load, 1, str(folder), "shared")
    (base,) = run_on_ranks(_load, 1, str(folder), "base")
    assert all(torch.equal(found[name], base[name]) for name in base if name.startswith(PASSAGE))
    assert all(torch.equal(found[name], expected[name].float()) for name in base if name.startswith(QUERY))


class _Whole(nn.Module):
    """A model with a frozen part, of another dtype than what is trained."""

    def __init__(self, retriever: DualEncoder) -> None:
        super().__init__()
        self.retriever = retriever.requires_grad_(False)
        self.weight = nn.Parameter(torch.ones(3))


def _run(topology: ProcessTopology, root: Path) -> tuple[_Whole, Optimizer, Callable[[bool], RunCheckpoints]]:
    """A run with the optimizer, and what makes its checkpoints, with or without a base."""
    whole = _Whole(DUAL_ENCODER.load(root / "base", topology, torch.bfloat16).model)
    optimizer = Optimizer(DataParallelModel(whole, topology), OptimizerConfig(lr=0.1), PrecisionConfig(), topology)

    def checkpoints(with_base: bool) -> RunCheckpoints:
        base, assets = BaseCheckpoint(root / "base") if with_base else None, (root / "vocab.txt").read_bytes()
        parts = {"retriever": ModelPart(KIND, lambda: CONFIG, {"vocab.txt": assets}, base)}
        config = SaveConfig(save=str(root / ("shared" if with_base else "whole")), keep_last=1)
        return RunCheckpoints(
            whole, optimizer, SavedModel("whole", {}, {}, {}, parts), MadeWith({}, {}, {}, {}), config, topology
        )

    return whole, optimizer, checkpoints


def _train(topology: ProcessTopology, folder: str) -> list[Tensor]:
    """Two steps, each followed by a checkpoint with base and one without."""
    whole, optimizer, checkpoints = _run(topology, Path(folder))
    for iteration in (1, 2):
        weight: Any = whole.weight
        weight.main_grad.fill_(iteration)
        optimizer.step(0.1)
        for with_base in (True, False):
            checkpoints(with_base).save(iteration)
    return [whole.weight.detach(), *optimizer.state_tensors().values()]


def _resume(topology: ProcessTopology, folder: str, with_base: bool) -> list[Tensor]:
    whole, optimizer, checkpoints = _run(topology, Path(folder))
    name = "shared" if with_base else "whole"
    with torch.no_grad():
        whole.retriever.requires_grad_(False)
        for parameter in whole.parameters():
            parameter.zero_()
    assert checkpoints(with_base).resume(resolve_checkpoint(Path(folder) / name)) == 2
    before = DUAL_ENCODER.load(Path(folder) / "base", topology, torch.bfloat16).model
    assert all(map(torch.equal, whole.retriever.parameters(), before.parameters()))
    return [whole.weight.detach(), *optimizer.state_tensors().values()]


def test_a_run_with_a_frozen_part_is_resumed(folder: Path) -> None:
    """Whether the part refers to its base or not; of the part, only one of both writes weights."""
    (trained,) = run_on_ranks(_train, 1, str(folder))
    for with_base in (True, False):
        for num_ranks in (1, 2):
            for found in run_on_ranks(_resume, num_ranks, str(folder), with_base):
                assert all(map(torch.equal, found, trained))
    shared, whole = (resolve_checkpoint(folder / name) for name in ("shared", "whole"))
    assert (load_file(whole / "retriever" / "model.tp0of1.safetensors")).keys()
    assert not load_file(shared / "retriever" / "model.tp0of1.safetensors")
    (part,) = run_on_ranks(_load, 1, str(folder), "shared/retriever")
    (base,) = run_on_ranks(_load, 1, str(folder), "base")
    assert _equal(part, base)


def _prune(topology: ProcessTopology, folder: str) -> None:
    """A base among the checkpoints that a run removes."""
    root = Path(folder)
    model, base = _started(topology, root), BaseCheckpoint(root / "base")
    for iteration in (10, 20, 30):
        _save(topology, root, "base", model, base=base, iteration=iteration, keep_last=1)


def test_a_base_is_not_removed(folder: Path) -> None:
    run_on_ranks(_prune, 1, str(folder))
    names = {path.name for path in (folder / "base").iterdir() if path.is_dir()}
    assert names == {"iter_0000000", "iter_0000030"}
    assert run_on_ranks(_load, 1, str(folder), "base")
