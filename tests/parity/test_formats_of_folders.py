"""The format of a folder of another project is told by what is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sentence_transformers import CrossEncoder

from megatron_retrieval.applications.learn import encoder as learned_encoder
from megatron_retrieval.checkpoint.huggingface.formats import format_of
from megatron_retrieval.checkpoint.kinds.cross_encoder import CROSS_ENCODER
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.testing.tiny_byte_bpe import write_unigram
from megatron_retrieval.testing.tiny_hf import save_with_vocabulary, tiny_cross_encoder


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"model_type": "bert"}, "hf-bert"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "hf-bert"),
        ({"model_type": "llama"}, "hf-causal-lm"),
        ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaForSequenceClassification"]}, "hf-cross-encoder"),
        ({"model_type": "modernbert", "architectures": ["ModernBertForSequenceClassification"]}, "hf-cross-encoder"),
        ({}, None),
    ],
)
def test_a_config_tells(settings: dict[str, object], name: str | None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert format_of(tmp_path) == name


def test_a_bert_with_the_vocabulary_of_xlm_r(tmp_path: Path) -> None:
    """As intfloat/multilingual-e5-small is."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    write_unigram(tmp_path)
    assert format_of(tmp_path) == "hf-bert-unigram"


def test_a_head_without_a_place_is_refused(tmp_path: Path) -> None:
    settings = {"model_type": "roberta", "architectures": ["RobertaForTokenClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(
        CheckpointError, match=r"a RobertaForTokenClassification, whose head .* --format hf-roberta takes the"
    ):
        format_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint here .* megatron-retrieval import checkpoint makes one"):
        CROSS_ENCODER.describe(tmp_path)


def test_a_cross_encoder_of_sentence_transformers_is_a_reranker(tmp_path: Path) -> None:
    """As `learn --question-reranker` takes it."""
    save_with_vocabulary(tiny_cross_encoder(), tmp_path / "hf")
    CrossEncoder(str(tmp_path / "hf"), device="cpu").save(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "modules.json").exists()
    with process_topology(ParallelConfig(device="cpu")) as topology:
        checkpoint = learned_encoder.imported(tmp_path / "saved", tmp_path / "imported", topology)
    assert CROSS_ENCODER.describe(checkpoint).shape.encoder.hidden_size == 32
