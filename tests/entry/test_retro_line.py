"""From texts to a text that a RETRO continues: chunks, keys, neighbours, training, generation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from megatron_retrieval.applications import evidence_embedding, neighbor_finding, retro_generation
from megatron_retrieval.applications.evidence_embedding import EmbedEvidenceConfig
from megatron_retrieval.applications.neighbor_finding import FindNeighborsConfig
from megatron_retrieval.applications.retro_generation import RetroGenerateConfig
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER, text_format_within
from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.chunk_builder import ChunkBuilderConfig, build_chunks
from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.recipes import retro_pretraining
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config
from megatron_retrieval.testing.tiny_byte_bpe import write_byte_bpe
from megatron_retrieval.testing.tiny_sentencepiece import SENTENCES
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

M = 8
TRAINING = (
    "--num-layers 2 --hidden-size 16 --num-attention-heads 2 --ffn-hidden-size 32 --max-position-embeddings 64 "
    "--init-method-std 0.3 --seq-length 32 --retro-cca-init normal --retro-num-neighbors 2 --train-iters 2 "
    "--global-batch-size 4 --no-tensorboard"
).split()


def _retriever(folder: Path, topology: ProcessTopology) -> Path:
    """A random dual encoder that knows letters."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += [f"{mark}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    shape, vocabulary = tiny_dual_encoder_config(shared=True), WordPieceTokenizer(folder / "vocab.txt")
    text_format = text_format_within(TextFormatConfig(), shape.encoder)
    model = DualEncoder(shape, topology, seed=1)
    DUAL_ENCODER.save(folder / "retriever", model, topology, shape, vocabulary, text_format)
    return folder / "retriever"


def test_a_text_is_continued_with_what_is_found_for_its_chunks(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    settings = {"vocab_file": str(write_byte_bpe(tmp_path / "bpe")), "retro_chunk_length": M}
    build_chunks(
        ChunkBuilderConfig(input=(str(tmp_path / "texts.jsonl"),), output=str(tmp_path / "chunks"), **settings)  # type: ignore[arg-type]
    )
    chunks = ChunkStore(tmp_path / "chunks")
    row = int(chunks.documents[1])
    ids, is_token = chunks.values(np.array(row))
    prompt = chunks.vocabulary.decode([ids[is_token].tolist()])[0]
    (tmp_path / "prompts.txt").write_text(f"{prompt}\n")
    inputs = {"chunks": tmp_path / "chunks", "embeddings": tmp_path / "keys"}
    with process_topology(ParallelConfig(device="cpu")) as topology:
        retriever = _retriever(tmp_path, topology)
        embed = EmbedEvidenceConfig(chunks=tmp_path / "chunks", retriever=retriever, output=tmp_path / "keys")
        evidence_embedding.main(embed, topology)
        neighbor_finding.main(FindNeighborsConfig(output=tmp_path / "neighbors", **inputs), topology)
        words = [
            *TRAINING,
            "--retro-chunks",
            str(tmp_path / "chunks"),
            "--retro-neighbors",
            str(tmp_path / "neighbors"),
        ]
        words += ["--output-dir", str(tmp_path / "run"), "--save", str(tmp_path / "saved")]
        retro_pretraining.build(parse_config(retro_pretraining.RetroPretrainingConfig, words), topology).fit()
        words = ["--checkpoint", str(tmp_path / "saved"), "--prompts", str(tmp_path / "prompts.txt")]
        words += ["--chunks", str(tmp_path / "chunks"), "--embeddings", str(tmp_path / "keys")]
        words += ["--retriever", str(retriever), "--max-answer-length", "20", "--output", str(tmp_path / "written")]
        retro_generation.main(parse_config(RetroGenerateConfig, words), topology)
    (line,) = (tmp_path / "written" / "continuations.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["prompt"] == prompt
    assert len(record["chunks"]) >= 2
    # a chunk of the database is its own nearest one, and gives what follows it
    first = record["chunks"][0]
    assert prompt.startswith(first["text"])
    assert len(first["neighbours"]) == 2
    (own,) = [found for found in first["neighbours"] if found["row"] == row]
    behind = prompt.removeprefix(first["text"])
    assert behind
    assert own["copied"].startswith(behind)
    written = prompt + record["continuation"]
    assert all(found["text"] in written for found in record["chunks"])
    assert len(record["chunks"]) >= 2
    page = (tmp_path / "written" / "examples.html").read_text()
    assert page.count("<h3") == len(record["chunks"])
