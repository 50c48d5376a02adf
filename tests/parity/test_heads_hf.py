"""The heads over every family compute what Hugging Face's do, forwards and backwards, at any tensor-parallel size, and
survive the way there and back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.formats import FORMATS, write_model
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_byte_bpe import write_modernbert_bpe, write_roberta_bpe, write_unigram
from megatron_retrieval.testing.tiny_hf import (
    VOCABULARY,
    attention_mask,
    random_batch,
    save_with_vocabulary,
    tiny_bert,
    tiny_cross_encoder,
    tiny_distilbert,
    tiny_masked_lm,
    tiny_modernbert,
    tiny_mpnet,
    tiny_roberta,
    tiny_xlm_roberta,
)
from megatron_retrieval.types.extractive import ExtractivePassages
from megatron_retrieval.utils.files import read_json, write_json

State = dict[str, Tensor]
BATCH = random_batch(num_tokens=20)
MASK = attention_mask(BATCH).bool()
ENCODERS: dict[str, tuple[Callable[[], transformers.PreTrainedModel], Callable[[Path], object] | None]] = {
    "bert": (tiny_bert, None),
    "mpnet": (tiny_mpnet, None),
    "distilbert": (tiny_distilbert, None),
    "roberta": (tiny_roberta, write_roberta_bpe),
    "xlm-roberta": (tiny_xlm_roberta, write_unigram),
    "modernbert": (tiny_modernbert, write_modernbert_bpe),
}
MPNET_VOCABULARY = ["<s>", "<pad>", "</s>", "[UNK]", "[CLS]", *VOCABULARY[5:-1], "<mask>"]
#: format -> what makes a model of an encoder, and transformers' class of such models
HEADS: dict[str, tuple[Callable[..., transformers.PreTrainedModel], Any]] = {
    "hf-masked-lm": (tiny_masked_lm, transformers.AutoModelForMaskedLM),
    "hf-cross-encoder": (tiny_cross_encoder, transformers.AutoModelForSequenceClassification),
    "hf-cross-encoder, mean": (
        partial(tiny_cross_encoder, classifier_pooling="mean"),
        transformers.AutoModelForSequenceClassification,
    ),
}
CASES = [(head, name) for head in HEADS for name in ENCODERS if "mean" not in head or name == "modernbert"]


def _format(head: str) -> str:
    return head.partition(",")[0]


def _save(head: str, name: str, folder: Path) -> transformers.PreTrainedModel:
    """Such a model with its vocabulary."""
    encoder, write = ENCODERS[name]
    model = HEADS[head][0](encoder())
    save_with_vocabulary(model, folder, MPNET_VOCABULARY if name == "mpnet" else VOCABULARY)
    if write is not None:
        (folder / "vocab.txt").unlink()
        write(folder)
    return model


def _weights(shape: torch.Size) -> Tensor:
    """What the outputs are weighted with before they are summed: all differ."""
    return torch.linspace(-1, 1, shape.numel()).view(shape)


def _reference(head: str, name: str, folder: Path) -> Tensor:
    """Their outputs; the gradients of a weighted sum of them become a model in `folder`/gradients."""
    model = _save(head, name, folder)
    outputs = model(BATCH.ids, attention_mask=MASK.long()).logits
    outputs = outputs[MASK] if outputs.dim() == 3 else outputs[:, 0]
    (outputs * _weights(outputs.shape)).sum().backward()
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    _save(head, name, folder / "gradients")
    model.save_pretrained(folder / "gradients")
    return outputs.detach()


def _run(topology: ProcessTopology, folder: str) -> dict[str, tuple[Tensor, State]]:
    """Of every case, this rank's outputs and the full gradients."""
    return {f"{head} {name}": _run_one(topology, head, Path(folder, head, name)) for head, name in CASES}


def _run_one(topology: ProcessTopology, head: str, folder: Path) -> tuple[Tensor, State]:
    found = FORMATS[_format(head)].read([folder])
    model = found.build(topology).eval()
    if head != "hf-masked-lm":
        outputs = model(ExtractivePassages(BATCH, None, torch.zeros_like(BATCH.lengths)))
        weights = _weights(outputs.shape)
    else:
        outputs = model(BATCH, MASK.flatten().nonzero()[:, 0])
        own, real = outputs.size(1), found.shape.vocab_size
        whole = torch.zeros(len(outputs), own * topology.tp_size)
        whole[:, :real] = _weights(torch.Size((len(outputs), real)))
        weights = whole[:, own * topology.tp_rank :][:, :own]
    (outputs * weights).sum().backward()
    gradients = {name: gather_full(p, topology, p.grad).clone() for name, p in model.named_parameters()}
    return outputs.detach(), gradients


def test_outputs_and_gradients_there_and_back(tmp_path: Path) -> None:
    expected = {f"{head} {name}": _reference(head, name, tmp_path / head / name) for head, name in CASES}
    for tp_size in (1, 2):
        ranks = run_on_ranks(_run, tp_size, str(tmp_path), tensor_model_parallel_size=tp_size)
        for head, name in CASES:
            case, theirs = f"{head} {name}", expected[f"{head} {name}"]
            parts = [rank[case][0] for rank in ranks]
            outputs = torch.cat(parts, 1) if theirs.dim() == 2 else parts[0]
            if theirs.dim() == 2:  # padding entries of the vocabulary take no part of the distribution
                assert (outputs[:, theirs.size(1) :] == torch.finfo(torch.float32).min).all(), case
                outputs = outputs[:, : theirs.size(1)]
            _assert_close(outputs, theirs, case, rtol=0, atol=1e-5)
            gradients = FORMATS[_format(head)].read([tmp_path / head / name / "gradients"]).weights
            for rank in ranks:
                assert rank[case][1].keys() == gradients.keys()
                for parameter, gradient in rank[case][1].items():
                    _assert_close(gradient, gradients[parameter], f"{case} {parameter}", rtol=1e-4, atol=2e-4)
    for head, name in CASES:
        _check_round_trip(head, tmp_path / head / name)


def _assert_close(found: Tensor, expected: Tensor, what: str, **tolerances: float) -> None:
    torch.testing.assert_close(found, expected, msg=lambda message: f"{what}: {message}", **tolerances)


def _check_round_trip(head: str, folder: Path) -> None:
    write_model(_format(head), FORMATS[_format(head)].read([folder]), folder / "out")
    before, after = (load_file(path / "model.safetensors") for path in (folder, folder / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    given, written = (_read_by_them(head, path) for path in (folder, folder / "out"))
    _assert_close(written, given, str(folder), rtol=0, atol=1e-6)


def _read_by_them(head: str, folder: Path) -> Tensor:
    """The outputs of the folder's model as transformers reads it, attention by the same formula wherever it runs."""
    model = HEADS[head][1].from_pretrained(folder, attn_implementation="eager").eval()
    assert type(model).__name__ == read_json(folder / "config.json")["architectures"][0]
    with torch.no_grad():
        outputs = model(BATCH.ids, attention_mask=MASK.long()).logits
    return outputs[MASK] if outputs.dim() == 3 else outputs[:, 0]


def test_a_modernbert_with_another_head_is_refused(tmp_path: Path) -> None:
    for head in ("hf-masked-lm", "hf-cross-encoder"):
        folder = tmp_path / head
        _save(head, "modernbert", folder)
        settings = read_json(folder / "config.json")
        write_json(folder / "config.json", {**settings, "classifier_activation": "relu"})
        with pytest.raises(CheckpointError, match="classifier_activation is 'relu'; only 'gelu'"):
            FORMATS[head].read([folder])
