"""One training for each learning rate of a grid, and the best of them."""

from __future__ import annotations

import json
from pathlib import Path

from programs import command, run, succeed

from megatron_retrieval.testing.tiny import write_tiny_dpr
from megatron_retrieval.testing.tiny_starts import write_starts

TINY = (
    "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --max-position-embeddings 32 --retriever-seq-length 32 "
    "--query-seq-length 16 --no-tensorboard --log-interval 1 --global-batch-size 8 --hidden-dropout 0 "
    "--attention-dropout 0 --init-method-std 0.5 --no-retriever-score-scaling --train-iters 3"
).split()


def test_the_best_rate_is_named(tmp_path: Path) -> None:
    data, vocab = write_tiny_dpr(tmp_path)
    out = tmp_path / "grid"
    words = ("tasks/main.py", "--task", "retriever-finetune", *TINY, "--train-data", data, "--vocab-file", vocab)
    words = (*words, "--valid-data", data, "--output-dir", out, "--save", out / "checkpoints")
    grid = ("--lr-grid", "1e-2", "1e-7", "1e-7")
    succeed(command(*words, *grid))
    found = json.loads((out / "lr_grid.json").read_text())
    assert [row["lr"] for row in found["runs"]] == [1e-7, 1e-2]
    losses = {row["lr"]: row["value"] for row in found["runs"]}
    assert losses[1e-2] != losses[1e-7]
    best = min(losses, key=losses.__getitem__)
    assert found["best"]["lr"] == best
    assert (out / "checkpoints" / "best").resolve() == (out / "checkpoints" / f"lr-{best:g}").resolve()
    for row in found["runs"]:
        metrics = json.loads((Path(row["output_dir"]) / "metrics.json").read_text())
        assert metrics["valid_loss"] == row["value"]
        assert (Path(row["checkpoints"]) / "iter_0000003").is_dir()
        assert json.loads((Path(row["output_dir"]) / "run_record.json").read_text())["earlier_seconds"] == 0
    # what is finished is not repeated; more is better of an accuracy
    times = [path.stat().st_mtime_ns for path in sorted(out.glob("checkpoints/lr-*/iter_0000003/manifest.json"))]
    succeed(command(*words, *grid, "--lr-grid-metric", "accuracy"))
    assert [
        path.stat().st_mtime_ns for path in sorted(out.glob("checkpoints/lr-*/iter_0000003/manifest.json"))
    ] == times
    for row in found["runs"]:
        assert json.loads((Path(row["output_dir"]) / "run_record.json").read_text())["earlier_seconds"] > 0
    again = json.loads((out / "lr_grid.json").read_text())
    assert again["best"]["value"] == max(row["value"] for row in again["runs"])
    elsewhere = run(command(*words, *grid, "--load", out / "checkpoints" / "lr-0.01"))
    assert "each rate of --lr-grid resumes its own run" in elsewhere.stderr
    wrong = run(command(*words, *grid, "--lr-grid-metric", "luck"))
    assert wrong.returncode != 0
    assert "--lr-grid-metric luck:" in wrong.stderr
    assert "accuracy, accuracy@20" in wrong.stderr


def test_a_rate_that_diverges_is_the_worst(tmp_path: Path) -> None:
    data, vocab = write_tiny_dpr(tmp_path)
    words = ("tasks/main.py", "--task", "retriever-finetune", *TINY, "--train-data", data, "--vocab-file", vocab)
    words = (*words, "--valid-data", data, "--output-dir", tmp_path, "--save", tmp_path / "checkpoints")
    words = (*words, "--train-iters", "8")
    succeed(command(*words, "--lr-grid", "1e30", "1e-3", "1e31"))

    def no_json(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    found = json.loads((tmp_path / "lr_grid.json").read_text(), parse_constant=no_json)
    assert [(row["lr"], row["diverged"]) for row in found["runs"]] == [(1e-3, False), (1e30, True), (1e31, True)]
    assert [row["value"] for row in found["runs"][1:]] == [None, None]
    assert found["best"]["lr"] == 1e-3
    for row in found["runs"]:
        record = json.loads((Path(row["output_dir"]) / "run_record.json").read_text())
        assert record["finished"] is not row["diverged"]
    # one that ends before it is stopped has no finite figure
    short = (*words, "--train-iters", "2", "--output-dir", tmp_path / "short", "--save", tmp_path / "short" / "saved")
    ended = run(command(*short, "--lr-grid", "1e30", "1e31"))
    assert ended.returncode == 1
    assert "--lr-grid 1e+30 1e+31: training diverged at every rate" in ended.stderr
    assert "Traceback" not in ended.stderr
    found = json.loads((tmp_path / "short" / "lr_grid.json").read_text(), parse_constant=no_json)
    assert found["best"] is None
    json.loads((tmp_path / "short" / "lr-1e+30" / "metrics.json").read_text(), parse_constant=no_json)


def test_rates_share_what_a_frozen_reader_has_read(tmp_path: Path) -> None:
    folder = write_starts(tmp_path)
    frozen = ("--objective", "rag-token", "--freeze-reader", "--freeze-passage-encoder", "--separate-encoders")
    settings = ("--num-passages", 4, "--max-answer-length", 4, "--embedding-dtype", "float32", "--no-tensorboard")
    words = ("tasks/main.py", "--task", "end-to-end-finetune", *frozen, *settings, "--global-batch-size", 4)
    for name, place in (("retriever", "retriever"), ("reader", "fusion"), ("evidence", "evidence")):
        words = (*words, f"--{name}", folder / place)
    data = folder / "biencoder.json"
    words = (*words, "--train-data", data, "--valid-data", data, "--max-valid-questions", 2, "--log-interval", 1)
    succeed(command(*words, "--output-dir", tmp_path / "grid", "--train-iters", 2, "--lr-grid", "1e-6", "2e-6"))
    read = {}
    for rate in ("1e-06", "2e-06"):
        lines = map(json.loads, (tmp_path / "grid" / f"lr-{rate}" / "metrics.jsonl").read_text().splitlines())
        steps = [line for line in lines if "num_passages_asked" in line]
        assert sum(step["num_passages_asked"] for step in steps) == 32
        read[rate] = sum(step["num_passages_read"] for step in steps)
    assert read["2e-06"] < read["1e-06"] / 2
