"""A kind of reader from outside of the package is fine-tuned, evaluated and trained together with a retriever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from end_to_end_runs import train, write_starts
from jobs import ROOT
from programs import command, losses, refuse, succeed

EXTENSION = ("--extensions", Path(__file__).parent / "extensions" / "mine_reader.py")
FINETUNE, EVALUATE = (("tasks/main.py", "--task", name) for name in ("mine-finetune", "qa-evaluate"))
SETTINGS = (
    "--global-batch-size 8 --num-train-passages 4 --train-iters 40 --lr 3e-3 --lr-decay-style constant "
    "--no-tensorboard --hidden-dropout 0 --attention-dropout 0 --eval-interval 40 --log-interval 1"
).split()


def _finetune(folder: Path, run: str, num_processes: int = 1) -> list[str]:
    output, data = folder / run, folder / "reading.json"
    places = ["--pretrained-checkpoint", folder / "retriever", "--train-data", data, "--valid-data", data]
    places += ["--output-dir", output, "--save", output / "checkpoints"]
    return command(*FINETUNE, *places, *SETTINGS, *EXTENSION, num_processes=num_processes)


def _exact_match(folder: Path, reader: Path, run: str, num_processes: int = 1) -> float:
    words = ("--reader", reader, "--questions", folder / "reading.json", "--output-dir", folder / run, *EXTENSION)
    succeed(command(*EVALUATE, *words, num_processes=num_processes))
    metrics = json.loads((folder / run / "metrics.json").read_text())
    assert metrics["reader"] == "word-reader"
    return float(metrics["exact_match"])


def test_a_reader_from_outside_does_all_that_readers_do(tmp_path: Path) -> None:
    folder = write_starts(tmp_path)
    log = succeed(_finetune(folder, "one"))
    assert "22 questions to learn from" in log
    succeed(_finetune(folder, "two", num_processes=2))
    one, two = (dict(losses(folder / run)) for run in ("one", "two"))
    # later ones are near zero, where roundings show
    assert {step: one[step] for step in range(1, 11)} == pytest.approx(
        {step: two[step] for step in range(1, 11)}, rel=1e-4
    )
    assert one[40] < 0.1 * one[1]

    reader = folder / "one" / "checkpoints"
    exact_match = _exact_match(folder, reader, "read")
    assert exact_match > 0.9
    assert exact_match == _exact_match(folder, reader, "read-two", num_processes=2)
    lines = map(json.loads, (folder / "one" / "metrics.jsonl").read_text().splitlines())
    assert exact_match == [line["valid_exact_match"] for line in lines if "valid_exact_match" in line][-1]

    words = (*EXTENSION, "--objective", "individual-topk")
    for run, num_processes in (("joint", 1), ("joint-two", 2)):
        succeed(train(folder, "one/checkpoints", run, 3, *words, num_processes=num_processes))
    joint, joint_two = (dict(losses(folder / run)) for run in ("joint", "joint-two"))
    assert joint == pytest.approx(joint_two, rel=1e-4)
    _exact_match(folder, folder / "joint" / "checkpoints" / "reader", "read-joint")
    refuse(
        train(folder, "one/checkpoints", "refused", 3, *EXTENSION, "--objective", "joint-topk"),
        "--objective joint-topk is not for the word-reader",
    )


def test_without_the_extension_nothing_knows_it() -> None:
    refuse(command(*FINETUNE), "error: --task mine-finetune: choose one of")


def test_the_package_does_not_know_it() -> None:
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "megatron_retrieval").rglob("*.py"))
    assert not any("word-reader" in source for source in sources)
