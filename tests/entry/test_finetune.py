"""The fine-tuning task as its user runs it: killed, resumed, stopped by a signal, given bad input."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import programs
import pytest
from programs import kill_at, losses, refuse, run, start, succeed, wait_for_step

from megatron_retrieval.testing.runs import saved_weights
from megatron_retrieval.testing.tiny import write_tiny_dpr

TINY = (
    "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --max-position-embeddings 32 --retriever-seq-length 32 "
    "--query-seq-length 16 --no-tensorboard --log-interval 1 --global-batch-size 8 --lr 1e-3 --save-interval 5"
).split()


def command(folder: Path, *flags: str, num_processes: int = 1) -> list[str]:
    """The words of a tiny run over data in `folder`, under python or torchrun."""
    data, vocab = write_tiny_dpr(folder)
    job = ("tasks/main.py", "--task", "retriever-finetune", *TINY, "--train-data", data, "--vocab-file", vocab)
    return programs.command(*job, *flags, num_processes=num_processes)


def test_killed_and_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = command(tmp_path, "--train-iters", "150", "--output-dir", f"{tmp_path}/whole", "--save", f"{tmp_path}/a")
    succeed(whole)
    flags = ["--output-dir", f"{tmp_path}/killed", "--save", f"{tmp_path}/b", "--load", f"{tmp_path}/b"]
    killed = command(tmp_path, "--train-iters", "150", *flags)
    kill_at(12, killed, tmp_path / "killed")
    assert not (tmp_path / "b" / "iter_0000150").exists()
    log = succeed(killed)
    assert "resumed" in log
    assert "other settings" not in log
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    first, second = (saved_weights(tmp_path / name / "iter_0000150") for name in "ab")
    assert all(first[name].equal(second[name]) for name in first | second)
    log = succeed([*killed, "--train-iters", "151", "--lr", "0.01", "--lr-warmup-iters", "6"])
    changes = "--train-iters 151 (was 150), --lr 0.01 (was 0.001), --lr-warmup-iters 6 (was none)\n"
    assert f"made with other settings: {changes}" in log


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 130)])
def test_stop_signal_saves_and_ends_cleanly(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """After an interruption a shell script does not go on to its next command."""
    flags = ["--train-iters", "100000", "--output-dir", f"{tmp_path}/run", "--save", f"{tmp_path}/a"]
    words = command(tmp_path, *flags, "--save-interval", "1000000")
    process = start(words)
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == status
    last = int((tmp_path / "a" / "latest_checkpointed_iteration.txt").read_text())
    assert losses(tmp_path / "run")[-1][0] == last
    assert json.loads((tmp_path / "run" / "run_record.json").read_text())["finished"] is False


def test_two_processes_under_torchrun(tmp_path: Path) -> None:
    flags = ["--train-iters", "5", "--hidden-dropout", "0", "--attention-dropout", "0"]
    succeed(command(tmp_path, *flags, "--output-dir", f"{tmp_path}/single"))
    succeed(command(tmp_path, *flags, "--output-dir", f"{tmp_path}/double", num_processes=2))
    expected = [loss for _, loss in losses(tmp_path / "single")]
    assert [loss for _, loss in losses(tmp_path / "double")] == pytest.approx(expected, rel=1e-4)


def test_failing_rank_ends_the_job_with_its_error(tmp_path: Path) -> None:
    words = command(tmp_path, "--output-dir", f"{tmp_path}/run", num_processes=2)
    words[words.index("--train-data") + 1] = f"{tmp_path}/absent.json"
    result = run(words)
    assert result.returncode != 0
    assert "absent.json: cannot be read (No such file or directory)" in result.stderr


BAD_INPUT = {
    "no such checkpoint": (["--pretrained-checkpoint", "{folder}/absent"], r"absent: no checkpoint here"),
    "mistyped load": (["--load", "{folder}/absent", "--save", "{folder}/a"], r"absent: no checkpoint here"),
    "nothing to start from": (["--vocab-file", "None"], "nothing to start from"),
    "no positive batch size": (["--global-batch-size", "0"], "--global-batch-size 0: must be at least 1"),
    "two precisions": (["--bf16", "--fp16"], "--bf16 and --fp16 exclude each other"),
    "passages longer than positions": (["--retriever-seq-length", "33"], "--retriever-seq-length 33 exceeds"),
    "odd tensor-parallel size": (["--tensor-model-parallel-size", "2"], "does not divide the number of processes"),
    "unknown yaml key": (["--config", "{folder}/job.yaml"], "job.yaml:1: unknown key 'learning-rate'"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_settings_end_with_one_sentence(tmp_path: Path, case: str) -> None:
    (tmp_path / "job.yaml").write_text("learning-rate: 1\n")
    flags, message = BAD_INPUT[case]
    words = command(tmp_path, "--output-dir", f"{tmp_path}/run", *[flag.format(folder=tmp_path) for flag in flags])
    refuse(words, message)
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_shape_or_damaged(tmp_path: Path) -> None:
    succeed(command(tmp_path, "--train-iters", "1", "--output-dir", f"{tmp_path}/run", "--save", f"{tmp_path}/a"))
    other = [*TINY, "--pretrained-checkpoint", f"{tmp_path}/a", "--ffn-hidden-size", "24"]
    shape = command(tmp_path, *other, "--output-dir", f"{tmp_path}/other")
    refuse(shape, "does not fit the model: full tensor of shape")
    weights = tmp_path / "a" / "iter_0000001" / "model.tp0of1.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    cut = command(tmp_path, "--pretrained-checkpoint", f"{tmp_path}/a", "--output-dir", f"{tmp_path}/other")
    refuse(cut, "the file is damaged or cut off")
    assert not (tmp_path / "other").exists()
