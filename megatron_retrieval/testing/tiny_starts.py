"""What end-to-end training starts from, in miniature: evidence, questions, a random retriever and random readers."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from megatron_retrieval.checkpoint.kinds.causal_lm import CAUSAL_LM
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER, text_format_within
from megatron_retrieval.checkpoint.kinds.extractive_reader import EXTRACTIVE_READER
from megatron_retrieval.checkpoint.kinds.fusion_reader import FUSION_READER
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.salient.builder import SpanBuilderConfig, build_salient_spans
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.causal_lm import CausalConfig, CausalLM
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_evidence
from megatron_retrieval.testing.tiny_byte_bpe import write_byte_bpe
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

TINY = tiny_dual_encoder_config()
READER = {**dataclasses.asdict(TINY.encoder), "max_position_embeddings": 32}
CAUSAL = CausalConfig(
    num_layers=1,
    hidden_size=16,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=32,
    max_position_embeddings=512,
    vocab_size=300,
    init_method_std=0.2,
)
LENGTHS: dict[str, Any] = {"question_seq_length": 6, "reader_seq_length": 32}


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
    causal = ByteBpeTokenizer(write_byte_bpe(root / "byte-bpe"))
    CAUSAL_LM.save(root / "causal", CausalLM(CAUSAL, topology, seed=2), topology, CAUSAL, causal)


def write_spans(folder: Path) -> Path:
    """Spans over the evidence of `write_starts`: of each sentence both keys, which another passage holds as well.

    Returns:
        Folder of the spans.
    """
    lines = []
    for record in json.loads((folder / "biencoder.json").read_text()):
        own = record["positive_ctxs"][0]
        keys = [[match.start(), match.end(), "NAME"] for match in re.finditer(r"key\d+", own["text"])]
        lines.append(json.dumps({"passage_id": own["passage_id"], "sentence": own["text"], "spans": keys}) + "\n")
    (folder / "spans.jsonl").write_text("".join(lines))
    settings = {"input": (str(folder / "spans.jsonl"),), "output": str(folder / "spans"), "tagger": "import"}
    build_salient_spans(SpanBuilderConfig(evidence=folder / "evidence", **settings))  # type: ignore[arg-type]
    return folder / "spans"


def write_starts(folder: Path) -> Path:
    """Write evidence, questions (biencoder.json, reading.json with passages), a random retriever and a random reader of
    each kind into an empty folder."""
    write_tiny_evidence(folder, num_distractors=0)
    write_reading(folder)
    run_on_ranks(_save_starts, 1, str(folder))
    return folder


def write_reading(folder: Path) -> Path:
    """Write reading.json, the questions of `write_tiny_dpr` in the same folder with their passages, and return its
    path."""
    records = [
        {"question": record["question"], "answers": record["answers"], "ctxs": contexts}
        for record in json.loads((folder / "biencoder.json").read_text())
        for contexts in [record["positive_ctxs"] + record["hard_negative_ctxs"]]
    ]
    path = folder / "reading.json"
    path.write_text(json.dumps(records))
    return path
