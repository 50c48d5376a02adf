"""A tiny index with everything that answers from it, opened in the test's own process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_retrieval.applications.answering import AnsweringConfig
from megatron_retrieval.applications.search import SearchConfig
from megatron_retrieval.applications.serve.config import ServeConfig
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER, text_format_within
from megatron_retrieval.checkpoint.kinds.extractive_reader import EXTRACTIVE_READER
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.index.bm25 import LexicalConfig, build_lexical_index
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.embedded import embed
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

TINY = tiny_dual_encoder_config()
#: weights so large that every word tells in what a random model finds
SHAPE = dataclasses.replace(TINY, encoder=dataclasses.replace(TINY.encoder, init_method_std=1.0))
READER = dataclasses.replace(SHAPE.encoder, max_position_embeddings=32)
COLOURS = ("red", "green", "blue", "white", "black", "yellow")
WORDS = ("the", "box", "of", "stands", "in", "room", "where", "is", "what", "😀", *COLOURS)
#: passage 3 is from the third page of a file
FILE = "boxes.html#page=3&passage=1"


def write_passages(folder: Path, places: Sequence[str]) -> None:
    """Evidence about a box of each colour, and its BM25 index, in an empty folder.

    Args:
        places: where the box of each colour stands.
    """
    folder.mkdir(parents=True)
    vocabulary = folder / "vocab.txt"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary.write_text("\n".join([*tokens, *(f"[unused{n}]" for n in range(64 - len(tokens)))]) + "\n")
    passages = [
        {"id": f"a/{n}" if n != 3 else FILE, "title": "<b>box</b>", "text": f"😀 the {colour} box stands in {place}"}
        for n, (colour, place) in enumerate(zip(COLOURS, places, strict=True))
    ]
    source = folder / "passages.jsonl"
    source.write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    output = str(folder / "evidence")
    build_evidence(EvidenceBuilderConfig(input=(str(source),), output=output, vocab_file=str(vocabulary)))
    evidence = EvidenceStore(output)
    texts = (evidence.passage(row) for row in range(len(evidence)))
    build_lexical_index(texts, len(evidence), LexicalConfig(), evidence.fingerprint, folder / "bm25")


def write_models(folder: Path, topology: ProcessTopology) -> None:
    """A random retriever with the embeddings of the folder's evidence, and a random reader."""
    vocabulary = WordPieceTokenizer(folder / "vocab.txt")
    text_format = text_format_within(TextFormatConfig(), SHAPE.encoder)
    encoder, reader = DualEncoder(SHAPE, topology, seed=1), ExtractiveReader(READER, topology, seed=2)
    DUAL_ENCODER.save(folder / "retriever", encoder, topology, SHAPE, vocabulary, text_format)
    layout = ExtractiveFormatConfig(question_seq_length=8, reader_seq_length=READER.max_position_embeddings)
    EXTRACTIVE_READER.save(folder / "reader", reader, topology, READER, vocabulary, layout)
    embed(topology, folder / "evidence", folder / "retriever", folder / "embeddings")


def answering(folder: Path, *, words_only: bool = False) -> AnsweringConfig:
    """All that a folder holds; or BM25 without models."""
    models = {} if words_only else {"embeddings": folder / "embeddings", "retriever": folder / "retriever"}
    search = SearchConfig(evidence=folder / "evidence", bm25_index=folder / "bm25", **models)
    return AnsweringConfig(search=search, reader=None if words_only else folder / "reader", num_passages=4)


def serving(what: AnsweringConfig, **settings: Any) -> ServeConfig:
    """A server that looks for newer versions only when it is told to, addressed as tests address it."""
    return ServeConfig(answering=what, watch_seconds=0, **{"allowed_hosts": ("testserver",), **settings})
