"""Every kind of work in miniature, started and continued as its user does it, for scripts that disturb it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_retrieval.errors import MegatronRetrievalError
from megatron_retrieval.testing.tiny import write_tiny_corpus, write_tiny_evidence
from megatron_retrieval.testing.tiny_starts import write_spans, write_starts
from megatron_retrieval.testing.warm_start import TORCHRUN, WarmProgram

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 120.0
#: on one thread each: a product of matrices is rounded otherwise on more
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

STEPS = (
    "--train-iters 30 --save-interval 3 --log-interval 1 --no-tensorboard --lr 1e-3 --lr-decay-style constant"
).split()
SHAPE = (
    "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --max-position-embeddings 32 --retriever-seq-length 32 "
    "--query-seq-length 16 --global-batch-size 8"
).split()
JOINTLY = (
    "--objective individual-topk --global-batch-size 4 --num-passages 8 --max-answer-length 4 "
    "--index-refresh-interval 3 --embedding-dtype float32"
).split()
MASKED = (
    "--global-batch-size 4 --num-passages 4 --reader-seq-length 16 --query-seq-length 12 --question-seq-length 8 "
    "--index-refresh-interval 3 --embedding-dtype float32 --watch-sentences 4"
).split()
#: ranks draw dropout of their own, so that their number may change only without it
NO_DROPOUT = ("--hidden-dropout", "0", "--attention-dropout", "0")
#: which version a step searches depends on the clock where others embed; vectors that stay the same make it not matter
FIXED_RETRIEVER = ("--retriever-lr", "0")


@dataclass(frozen=True)
class Kind:
    """A kind of work.

    Attributes:
        words: the program and its flags, but for where results go.
        trains: it trains; else it makes a folder.
        num_sides: ranks that embed beside those that train.
        is_own_launcher: --workers starts further processes; else torchrun does.
        is_single: it runs on one process.
    """

    name: str
    words: tuple[object, ...]
    trains: bool = True
    num_sides: int = 0
    is_own_launcher: bool = False
    is_single: bool = False

    def start(
        self,
        folder: Path,
        num_processes: int,
        more: Iterable[object] = (),
        environment: Mapping[str, str] | None = None,
    ) -> WarmProgram:
        """Begin or continue the work in `folder`; what is said is appended to a file beside it, see `said`.

        Args:
            more: further flags.
            environment: variables beside those of this process.
        """
        words = [*self.words, *more]
        if self.num_sides:
            words += ["--num-embedding-ranks", self.num_sides]
        saved = folder / "checkpoints"
        words += ["--output-dir", folder, "--save", saved, "--load", saved] if self.trains else ["--output", folder]
        if self.is_own_launcher:
            words += ["--workers", num_processes]
        elif num_processes + self.num_sides > 1:
            words = [*TORCHRUN, num_processes + self.num_sides, *words]
        return start_program(words, folder, environment)


def start_program(words: Iterable[object], folder: Path, environment: Mapping[str, str] | None = None) -> WarmProgram:
    """Start a program that works in `folder`, from the project's root; what it says is appended to a file beside it."""
    log = folder.with_name(f"{folder.name}.log")
    environment = {**ENVIRONMENT, **(environment or {})}
    return WarmProgram([str(word) for word in words], cwd=ROOT, env=environment, stdout=log, stderr=log)


def kinds_of_work(folder: Path) -> list[Kind]:
    """All kinds, over inputs that are written into `folder`."""
    large, small = folder / "large", folder / "small"
    for path in (large, small):
        path.mkdir()
    write_tiny_corpus(large, 400)
    evidence, starts = write_tiny_evidence(large, 4000), write_starts(small)
    vocab, questions, reading = starts / "vocab.txt", starts / "biencoder.json", starts / "reading.json"
    task = ("tasks/main.py", "--task")
    reader: tuple[object, ...] = ("--train-data", reading, "--global-batch-size", 8, "--micro-batch-size", 8, *STEPS)
    reader += ("--pretrained-checkpoint",)
    jointly: tuple[object, ...] = (
        *task,
        "end-to-end-finetune",
        "--retriever",
        starts / "retriever",
        "--train-data",
        questions,
    )
    jointly += ("--evidence", starts / "evidence", *JOINTLY, *STEPS, "--reader")
    spans = write_spans(starts)
    masked: tuple[object, ...] = (
        "pretrain_mss.py",
        "--spans",
        spans,
        "--retriever",
        starts / "retriever",
    )
    masked += ("--evidence", starts / "evidence", *JOINTLY, *STEPS, "--watch-sentences", 4, "--reader")
    fixed = (*jointly, starts / "extractive", *FIXED_RETRIEVER)
    realm: tuple[object, ...] = (
        "pretrain_realm.py",
        "--retriever",
        starts / "retriever",
        "--reader",
        starts / "retriever",
        "--spans",
    )
    realm += (spans, "--evidence", starts / "evidence", *MASKED, *STEPS)
    build = ("tools/build_evidence.py", "--input", large / "passages.jsonl", "--vocab-file", vocab)
    texts = ("tools/build_corpus.py", "--input", large / "corpus.jsonl", "--vocab-file", large / "corpus-vocab.txt")
    embed = ("--evidence", evidence, "--retriever", starts / "retriever", "--rows-per-shard", 512)
    return [
        Kind("build evidence", build, trains=False, is_own_launcher=True),
        Kind("build corpus", texts, trains=False, is_own_launcher=True),
        Kind("build BM25", ("tools/build_bm25.py", "--evidence", evidence), trains=False, is_single=True),
        Kind("embed", ("tools/embed_evidence.py", *embed), trains=False),
        Kind("ICT", ("pretrain_ict.py", *SHAPE, *STEPS, "--data-path", large / "corpus")),
        Kind("DPR", (*task, "retriever-finetune", *SHAPE, *STEPS, "--train-data", questions, "--vocab-file", vocab)),
        Kind("reader, extractive", (*task, "extractive-finetune", *reader, starts / "extractive")),
        Kind("reader, fusion", (*task, "fusion-finetune", *reader, starts / "fusion")),
        Kind("reader, causal", (*task, "causal-finetune", *reader, starts / "causal")),
        Kind("end to end, in place", (*jointly, starts / "extractive")),
        Kind("end to end, fusion", (*jointly, starts / "fusion")),
        Kind("end to end, causal", (*jointly, starts / "causal")),
        Kind("MSS, extractive", (*masked, starts / "extractive")),
        Kind("MSS, fusion", (*masked, starts / "fusion", "--null-passage")),
        Kind("REALM", realm),
        Kind("end to end, background", (*fixed, "--index-refresh-mode", "background")),
        Kind("end to end, embedding ranks", fixed, num_sides=1),
    ]


def said(folder: Path) -> str:
    """What the programs said that worked in `folder`."""
    return folder.with_name(f"{folder.name}.log").read_text(encoding="utf-8")


def ends_within(program: WarmProgram, seconds: float) -> bool:
    """Whether a program ends by itself in that time."""
    with contextlib.suppress(TimeoutError):
        program.wait(seconds)
        return True
    return False


def require_success(program: WarmProgram, folder: Path) -> None:
    """Raises MegatronRetrievalError: it ended with another status than 0, or not at all."""
    if not ends_within(program, PATIENCE_SECONDS):
        program.kill()
        raise MegatronRetrievalError(f"The program for {folder} has not ended:\n{said(folder)[-3000:]}")
    if status := program.poll():
        raise MegatronRetrievalError(f"The program for {folder} ended with status {status}:\n{said(folder)[-3000:]}")


def losses(folder: Path) -> list[float]:
    """The losses that a run logged."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record["loss"] for record in records if "loss" in record]
