"""Fine-tuning that loses little of what the start was good at: a teacher's vectors in training, means of weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from megatron_retrieval.applications import checkpoint_merging
from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.embedded import embed
from megatron_retrieval.testing.runs import FINETUNE, curve, saved_weights, train
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import write_tiny_evidence

TINY = (
    "--num-layers 1 --hidden-size 32 --num-attention-heads 4 --max-position-embeddings 32 --init-method-std 0.2 "
    "--retriever-seq-length 16 --query-seq-length 16 --no-tensorboard --log-interval 1 --global-batch-size 8 --lr 3e-3 "
    "--pooling mean --biencoder-shared-query-context-model --no-retriever-score-scaling "
    "--hidden-dropout 0 --attention-dropout 0"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints `start`, and `tuned` of ten steps; evidence, and its `vectors` by the start."""
    folder = tmp_path_factory.mktemp("forgetting")
    write_tiny_evidence(folder, 60)
    _train(folder, "start", "--train-iters", "1", "--lr", "1e-9")
    _train(folder, "tuned", "--train-iters", "10", *_from_start(folder))
    run_on_ranks(embed, 1, folder / "evidence", folder / "start" / "saved", folder / "vectors")
    return folder


def _train(folder: Path, name: str, *flags: str, ranks: tuple[int, int] = (1, 1)) -> None:
    places = ["--train-data", f"{folder}/biencoder.json", "--vocab-file", f"{folder}/vocab.txt"]
    places += ["--output-dir", f"{folder}/{name}", "--save", f"{folder}/{name}/saved"]
    train(FINETUNE, [*TINY, *places, *flags], *ranks)


def _from_start(folder: Path) -> list[str]:
    return ["--pretrained-checkpoint", f"{folder}/start/saved"]


def _distilled(folder: Path, weight: float) -> list[str]:
    teacher = ["--distill-evidence", f"{folder}/evidence", "--distill-embeddings", f"{folder}/vectors"]
    return [*_from_start(folder), *teacher, "--distill-weight", str(weight), "--distill-batch-size", "10"]


def test_the_teacher_holds_the_encoder(folder: Path) -> None:
    """The first step starts at the teacher, later ones stay near it; passages without a question move less."""
    _train(folder, "held", "--train-iters", "10", *_distilled(folder, 30.0))
    _train(folder, "watched", "--train-iters", "10", *_distilled(folder, 1e-6))
    held, watched = (curve(folder / name, "distance_from_teacher") for name in ("held", "watched"))
    assert held[0] == pytest.approx(0, abs=1e-6)
    assert max(held[3:]) < 0.3 * min(watched[3:])
    assert curve(folder / "watched") == pytest.approx(curve(folder / "tuned"), rel=1e-3)


@pytest.mark.parametrize("ranks", [(2, 1), (2, 2)], ids=["DP 2", "TP 2"])
def test_the_teacher_is_the_same_at_every_layout(folder: Path, ranks: tuple[int, int]) -> None:
    flags = ["--train-iters", "4", *_distilled(folder, 1.0)]
    flags[flags.index("--distill-batch-size") + 1] = "27"  # the last of an epoch has 1 passage, for one rank alone
    single, several = folder / "single", folder / f"layout-{ranks[1]}"
    if not single.exists():
        _train(folder, single.name, *flags)
    _train(folder, several.name, *flags, ranks=ranks)
    for name in ("loss", "distance_from_teacher", "grad_norm"):
        assert curve(several, name) == pytest.approx(curve(single, name), rel=1e-3, abs=1e-6)


def test_a_teacher_of_other_passages_is_refused(folder: Path, tmp_path: Path) -> None:
    write_tiny_evidence(tmp_path, 5)
    flags = _distilled(folder, 1.0)
    flags[flags.index("--distill-evidence") + 1] = f"{tmp_path}/evidence"
    with pytest.raises(ProcessRaisedException, match=r"are of evidence .* but the evidence given is"):
        _train(folder, "refused", *flags)
    frozen = [*_distilled(folder, 1.0), "--freeze-passage-encoder"]
    with pytest.raises(ConfigError, match="which --freeze-passage-encoder leaves as it is"):
        parse_config(FINETUNE.config, [*TINY, "--train-data", "a", "--output-dir", "b", *frozen])
    with pytest.raises(ConfigError, match="--distill-evidence and --distill-embeddings belong together"):
        parse_config(FINETUNE.config, [*TINY, "--train-data", "a", "--output-dir", "b", "--distill-evidence", "c"])
    assert len(EmbeddingStore(folder / "vectors")) == 82


def _sweep(folder: Path, output: Path, *flags: str, num_ranks: int = 1) -> dict[str, object]:
    words = ["--checkpoints", f"{folder}/start/saved", f"{folder}/tuned/saved", "--output", str(output)]
    words += ["--sweep", "0", "0.5", "1", "--eval-questions", *[f"{folder}/biencoder.json"] * 2]
    words += ["--eval-evidence", *[f"{folder}/evidence"] * 2, "--picture", *flags]
    config = parse_config(checkpoint_merging.MergeConfig, words)
    run_on_ranks(_merge, num_ranks, config)
    return dict(json.loads((output / "sweep.json").read_text()))


def _merge(topology: ProcessTopology, config: checkpoint_merging.MergeConfig) -> None:
    checkpoint_merging.main(config, topology)


def test_sweep_measures_every_share_and_keeps_the_best(folder: Path, tmp_path: Path) -> None:
    found = _sweep(folder, tmp_path / "one")
    shares = found["shares"]
    assert isinstance(shares, list)
    assert [row["share"] for row in shares] == [0, 0.5, 1]
    recalls = [row["data_sets"][0]["recall@1"]["candidate"] for row in shares]
    assert recalls[2] > recalls[0]
    (best,) = (row for row in shares if row["is_best"])
    assert best["data_sets"][0]["recall@1"]["candidate"] == max(recalls)
    assert (tmp_path / "one" / "best").resolve() == Path(best["checkpoint"]).resolve()
    assert (tmp_path / "one" / "sweep.png").stat().st_size
    mean, *ends = (
        saved_weights(resolve_checkpoint(path))
        for path in (tmp_path / "one" / "share-0.5", folder / "start" / "saved", folder / "tuned" / "saved")
    )
    for name, weight in mean.items():
        assert weight.equal(ends[0][name] * 0.5 + ends[1][name] * 0.5)
    # measured figures are not measured again
    metrics = tmp_path / "one" / "share-1" / "evaluation-0" / "metrics.json"
    before = metrics.stat().st_mtime_ns
    assert _sweep(folder, tmp_path / "one") == found
    assert metrics.stat().st_mtime_ns == before
    two = _sweep(folder, tmp_path / "two", num_ranks=2)["shares"]
    assert isinstance(two, list)
    assert [row["data_sets"][0]["recall@1"] for row in two] == [row["data_sets"][0]["recall@1"] for row in shares]
    # of other questions they are
    fewer = _sweep(folder, tmp_path / "one", "--eval-max-questions", "5")["shares"]
    assert isinstance(fewer, list)
    assert {one["num_questions"] for row in fewer for one in row["data_sets"]} == {5}
    # and so they are in another number format, in which the mean itself is not kept
    _sweep(folder, tmp_path / "one", "--eval-max-questions", "5", "--bf16", "--allow-slow-dtype")
    assert json.loads(metrics.read_text())["measured"]["dtype"] == "bfloat16"
    kept = saved_weights(resolve_checkpoint(tmp_path / "one" / "share-0.5"))
    assert {weight.dtype for weight in kept.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--sweep", "0.5"], "--sweep: give two shares or more, between 0 and 1"),
        (["--sweep", "0", "1"], "--sweep measures: give --eval-questions"),
        (["--sweep", "0", "1", "--weights", "0.5", "0.5"], "--sweep"),
    ],
)
def test_sweeps_that_cannot_be(flags: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_config(checkpoint_merging.MergeConfig, ["--checkpoints", "a", "b", "--output", "c", *flags])
