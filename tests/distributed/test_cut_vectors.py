"""Embeddings that are cut to a size are searched with questions cut alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from megatron_retrieval.applications.evidence_embedding import EmbedEvidenceConfig, main
from megatron_retrieval.applications.search import SearchConfig, open_search
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.data.layouts.sequences import TextFormatConfig, lay_out_questions
from megatron_retrieval.data.stores.ragged import tokenize
from megatron_retrieval.errors import ConfigError, MismatchError
from megatron_retrieval.index.store.embedding_store import EmbeddingStore
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.refresh.starting_index import open_given
from megatron_retrieval.retrieval.encode_batches import EncodeConfig, EncodePassagesConfig
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_evidence
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

SHAPE = dataclasses.replace(tiny_dual_encoder_config(shared=True), normalize_embeddings=True)
SIZE = 6
QUESTION = "where is the box of key3"


def _check(topology: ProcessTopology, folder: str) -> bool:
    root, vocabulary = Path(folder), WordPieceTokenizer(Path(folder) / "vocab.txt")
    layout = TextFormatConfig(query_seq_length=12, retriever_seq_length=16)
    DUAL_ENCODER.save(root / "model", DualEncoder(SHAPE, topology, seed=1), topology, SHAPE, vocabulary, layout)
    for name, size in (("whole", None), ("cut", SIZE)):
        config = EmbedEvidenceConfig(
            evidence=root / "evidence",
            retriever=root / "model",
            output=root / name,
            embedding_dtype="float32",
            embedding_size=size,
            encode=EncodePassagesConfig(dtype="fp32"),
        )
        main(config, topology)
    whole, cut = EmbeddingStore(root / "whole"), EmbeddingStore(root / "cut")
    expected = torch.nn.functional.normalize(whole.vectors(0, len(whole))[:, :SIZE], dim=1)
    torch.testing.assert_close(cut.vectors(0, len(cut)), expected)
    search = SearchConfig(evidence=root / "evidence", embeddings=root / "cut", retriever=root / "model")
    session = open_search(search, EncodeConfig(), topology)
    assert session.dense is not None
    (found,) = session.search([QUESTION], 3)
    model = session.dense.encoder.model
    model.cut(None)
    questions = lay_out_questions(tokenize(vocabulary, [QUESTION]), vocabulary, layout)
    with torch.no_grad():
        asked = torch.nn.functional.normalize(model.encode_queries(questions)[:, :SIZE], dim=1)
    scores, rows = (asked @ expected.t()).topk(3)
    assert [passage.id for passage, _ in found] == [session.evidence.passage(row).id for row in rows[0].tolist()]
    assert [score for _, score in found] == pytest.approx(scores[0].tolist(), abs=1e-5)
    misplaced, made_by = dataclasses.replace(config, output=root / "whole"), cut.manifest.identity.encoder_fingerprint
    for problem, error, call in (
        ("embedding size unknown, but this job's is 6", MismatchError, lambda: main(misplaced, topology)),
        ("have 32 numbers", ConfigError, lambda: model.cut(33)),
        ("are cut to 6 numbers", MismatchError, lambda: open_given(root / "cut", session.evidence, made_by)),
    ):
        with pytest.raises(error, match=problem):
            call()
    return True


def test_passages_and_questions_are_cut_alike(tmp_path: Path) -> None:
    write_tiny_evidence(tmp_path, num_distractors=20)
    assert run_on_ranks(_check, 1, str(tmp_path)) == [True]
