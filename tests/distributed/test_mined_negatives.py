"""Hard negatives that are mined anew while the encoder learns: alike at any number of ranks, after a restart, and by an
index that is embedded beside training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.refresh import index_refresh
from megatron_retrieval.refresh.index_worker import IndexWorkerConfig, fulfil
from megatron_retrieval.refresh.mined_negatives import NegativeMiner
from megatron_retrieval.retrieval.index_versions import IndexVersions
from megatron_retrieval.testing.runs import FINETUNE, curve, rewind, train
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import write_tiny_evidence
from megatron_retrieval.training.trainer import Callback, StepReport, Trainer

FLAGS = (
    "--num-layers 1 --hidden-size 32 --num-attention-heads 4 --max-position-embeddings 32 --init-method-std 0.2 "
    "--retriever-seq-length 32 --query-seq-length 16 --no-tensorboard --log-interval 1 --pooling mean "
    "--global-batch-size 8 --micro-batch-size 8 --lr 3e-3 --seed 5 --biencoder-shared-query-context-model "
    "--no-retriever-score-scaling --hidden-dropout 0 --attention-dropout 0 --num-hard-negatives 2 --train-iters 7 "
    "--index-refresh-interval 3 --mined-depth 6 --embedding-dtype float32"
).split()


def test_number_of_ranks_and_restarts_change_nothing(tmp_path: Path) -> None:
    """Resumed at a change of the index, and between two."""
    evidence = write_tiny_evidence(tmp_path, num_distractors=40)
    data = ["--train-data", f"{tmp_path}/biencoder.json", "--vocab-file", f"{tmp_path}/vocab.txt"]
    words, saved = [*FLAGS, *data, "--evidence", str(evidence)], tmp_path / "saved"
    whole = [*words, "--output-dir", f"{tmp_path}/one", "--save", str(saved), "--save-interval", "1"]
    train(FINETUNE, whole)
    expected = curve(tmp_path / "one")
    assert len(expected) == 7
    assert curve(tmp_path / "one", "index_version") == [3, 6]
    found = [load_file(saved / f"iter_000000{step}" / "states.tp0of1.safetensors") for step in (3, 6)]
    first, second = (tensors["mined negatives.rows"] for tensors in found)
    assert first.shape == second.shape == (22, 6)
    assert not first.equal(second)
    assert ((first >= 0) & (first < 62)).all()
    for step, num_ranks, tp_size in ((3, 1, 1), (5, 2, 1), (5, 2, 2)):
        rewind(saved, step)
        output = tmp_path / f"from {step} at {num_ranks}, {tp_size}"
        shutil.copytree(tmp_path / "one" / "index", output / "index")
        train(FINETUNE, [*words, "--output-dir", str(output), "--load", str(saved)], num_ranks, tp_size)
        assert curve(output) == pytest.approx(expected[step:], rel=1e-4 if num_ranks > 1 else 0)


class _NoProcess:
    """In the place of the worker's supervisor."""

    def __init__(self, *args: object, **settings: object) -> None: ...

    def look(self) -> None: ...

    def stop(self) -> None: ...


class _Worker(Callback):
    """Does after the fifth step what a process beside training does meanwhile."""

    def __init__(self, folder: Path, evidence: Path) -> None:
        self._config = IndexWorkerConfig(index_dir=folder, evidence=evidence, parent_pid=0, embedding_dtype="float32")

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        versions = IndexVersions(self._config.index_dir)
        if trainer.topology.is_main and report.iteration == 5:
            request = versions.requested()
            assert request is not None
            fulfil(request, versions, EvidenceStore(self._config.evidence), self._config, trainer.topology)
        trainer.topology.barrier()


class _Nearest(Callback):
    """What lies nearest to every question, by plain products with the version on the disk, when the index is new."""

    def __init__(self, folder: Path, dataset: Any) -> None:
        self._versions, self._dataset = IndexVersions(folder), dataset
        self.rows: list[torch.Tensor] = []

    def look(self, trainer: Trainer, version: int) -> None:
        store = EmbeddingStore(self._versions.path(version))
        with torch.no_grad():
            questions = trainer.step.model.encode_queries(self._dataset.all_questions())  # type: ignore[operator,union-attr]
        self.rows.append((questions @ store.vectors(0, len(store)).T).topk(6).indices)

    def on_start(self, trainer: Trainer) -> None:
        self.look(trainer, 0)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        if report.iteration == 5:
            self.look(trainer, 3)


def _mined_beside(topology: ProcessTopology, words: list[str], evidence: str, output: str) -> list[list[bool]]:
    """Of every step, whether the hard negatives of each question are among the nearest of the first index, and of the
    second."""
    folder, is_near = Path(output) / "index", list[list[bool]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_refresh, "WorkerSupervisor", _NoProcess)
        trainer = FINETUNE.build(parse_config(FINETUNE.config, words), topology)
    miner = next(callback for callback in trainer._callbacks if isinstance(callback, NegativeMiner))
    dataset: Any = miner._examples
    nearest = _Nearest(folder, dataset)
    trainer._callbacks = [_Worker(folder, Path(evidence)), *trainer._callbacks, nearest]
    batches, forward_backward = [], trainer.step.forward_backward

    def recorded(batch: Any, *settings: Any) -> Any:
        batches.append(batch.numbers)
        return forward_backward(batch, *settings)

    trainer.step.forward_backward = recorded  # type: ignore[method-assign]
    trainer.fit()
    for questions, passages in batches:
        drawn = passages.view(len(questions), -1)[:, 1:].tolist()
        numbers = [
            [dataset._pool.numbers_of_rows(rows[question].numpy(), without=()) for question in questions.tolist()]
            for rows in nearest.rows
        ]
        is_near.append([_within(drawn, own) for own in numbers])
    return is_near


def _within(drawn: list[list[int]], nearest: list[tuple[int, ...]]) -> bool:
    return all(set(own) <= {*near, -1} for own, near in zip(drawn, nearest, strict=True))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_they_follow_an_index_that_is_embedded_beside_training(tmp_path: Path, num_ranks: int) -> None:
    """Asked for after the third step and done after the fifth; batches that were prepared ahead are made anew."""
    evidence = write_tiny_evidence(tmp_path, num_distractors=40)
    words = [*FLAGS, "--train-data", f"{tmp_path}/biencoder.json", "--vocab-file", f"{tmp_path}/vocab.txt"]
    words += ["--evidence", str(evidence), "--output-dir", f"{tmp_path}/run", "--index-refresh-mode", "background"]
    for is_near in run_on_ranks(_mined_beside, num_ranks, words, str(evidence), f"{tmp_path}/run"):
        assert is_near == [[True, False]] * 5 + [[False, True]] * 2
    assert curve(tmp_path / "run", "index_version") == [3]
