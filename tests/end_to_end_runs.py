"""End-to-end training of tiny models, as its user starts it."""

from __future__ import annotations

from pathlib import Path

from programs import command

from megatron_retrieval.testing.tiny_starts import TINY, write_starts

__all__ = ["SETTINGS", "TINY", "TRAIN", "train", "write_starts"]

TRAIN = ("tasks/main.py", "--task", "end-to-end-finetune")
SETTINGS = (
    "--global-batch-size 4 --micro-batch-size 2 --num-passages 8 --lr 1e-3 --lr-decay-style constant --seed 5 "
    "--lr-warmup-fraction 0 --max-answer-length 4 --index-refresh-interval 3 --no-tensorboard "
    "--embedding-dtype float32 --log-interval 1 --save-interval 4"
).split()


def train(
    folder: Path, reader: str, run: str | Path, num_steps: int, *words: object, num_processes: int = 1
) -> list[str]:
    """The command that trains from the starts in `folder`.

    Args:
        reader: extractive or fusion.
        run: folder of what training leaves.
        words: further flags.
    """
    output = folder / run
    starts = ["--retriever", folder / "retriever", "--reader", folder / reader, "--evidence", folder / "evidence"]
    places = ["--train-data", folder / "biencoder.json", "--output-dir", output, "--save", output / "checkpoints"]
    length = ["--train-iters", num_steps]
    return command(*TRAIN, *starts, *places, *SETTINGS, *length, *words, num_processes=num_processes)
