"""End-to-end training of tiny models, as its user starts it: random starting points and the command."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from programs import command

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER, text_format_within
from megatron_retrieval.checkpoint.kinds.extractive_reader import EXTRACTIVE_READER
from megatron_retrieval.checkpoint.kinds.fusion_reader import FUSION_READER
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_evidence
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

TRAIN = ("tasks/main.py", "--task", "end-to-end-finetune")
TINY = tiny_dual_encoder_config()
READER = {**dataclasses.asdict(TINY.encoder), "max_position_embeddings": 32}
LENGTHS: dict[str, Any] = {"question_seq_length": 6, "reader_seq_length": 32}
SETTINGS = (
    "--global-batch-size 4 --micro-batch-size 2 --num-passages 8 --lr 1e-3 --lr-decay-style constant --seed 5 "
    "--lr-warmup-fraction 0 --max-answer-length 4 --index-refresh-interval 3 --no-tensorboard "
    "--embedding-dtype float32 --log-interval 1 --save-interval 4"
).split()


def _save_starts(topology: ProcessTopology, folder: str) -> None:
    """A random retriever, and a random reader of each kind."""
    root = Path(folder)
    text_format, extractive, fusion = (
        text_format_within(TextFormatConfig(), TINY.encoder),
        ExtractiveFormatConfig(**LENGTHS),
        FusionFormatConfig(**LENGTHS, question_prefix="where", title_prefix="title", passage_prefix="of"),
    )
    bert, seq2seq = BertConfig(**READER), BertSeq2SeqConfig(**READER, decoder_num_layers=1)
    vocabulary = WordPieceTokenizer(root / "vocab.txt")
    retriever, pointing = DualEncoder(TINY, topology, seed=1), ExtractiveReader(bert, topology, seed=2)
    writing = BertSeq2Seq(seq2seq, topology, start_id=2, end_id=3, seed=2)
    DUAL_ENCODER.save(root / "retriever", retriever, topology, TINY, vocabulary, text_format)
    EXTRACTIVE_READER.save(root / "extractive", pointing, topology, bert, vocabulary, extractive)
    FUSION_READER.save(root / "fusion", writing, topology, seq2seq, vocabulary, fusion)


def write_starts(folder: Path) -> Path:
    """Write evidence, questions, a random retriever, and a random reader of each kind into an empty folder."""
    write_tiny_evidence(folder, num_distractors=0)
    run_on_ranks(_save_starts, 1, str(folder))
    return folder


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
