"""Readers of Hugging Face that point to answers: their logits, their way there and back, and what they answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from test_cross_encoder_hf import OTHERS
from torch import Tensor
from transformers import PreTrainedModel

from megatron_retrieval import Reader
from megatron_retrieval.checkpoint.huggingface.format import ForeignModel
from megatron_retrieval.checkpoint.huggingface.formats import FORMATS, export_model, format_of, import_model
from megatron_retrieval.checkpoint.kinds.extractive_reader import EXTRACTIVE_READER
from megatron_retrieval.data.stores.ragged import tokenize
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.parallel.topology import ParallelConfig, process_topology
from megatron_retrieval.testing.tiny_hf import save_with_vocabulary, tiny_bert, tiny_cross_encoder
from megatron_retrieval.types.extractive import ExtractivePassages, SpanLogits

QUESTIONS, TITLES = ["w1 w2 w3", "w9", "w4 w5"], ["w7", "w8 w9", "w1"]
TEXTS = ["w5 w6 w7 w1", "w2 w3", "w11 w12 w13 w14 w15 w16"]


def _save(name: str, folder: Path) -> PreTrainedModel:
    model, write = OTHERS.get(name, (tiny_bert, None))
    config = model().config
    torch.manual_seed(3)
    reader = transformers.AutoModelForQuestionAnswering.from_config(config).eval()
    save_with_vocabulary(reader, folder)
    if write is not None:
        (folder / "vocab.txt").unlink()
        write(folder)
    return reader


def _logits(found: ForeignModel) -> tuple[SpanLogits, ExtractivePassages]:
    asked, titles, texts = (tokenize(found.vocabulary, column) for column in (QUESTIONS, TITLES, TEXTS))
    passages = found.layout.lay_out(asked, titles, texts, found.vocabulary.special)
    with process_topology(ParallelConfig(device="cpu")) as topology, torch.no_grad():
        return found.build(topology).eval()(passages), passages


@pytest.mark.parametrize("name", ["bert", *(name for name in OTHERS if name != "modernbert")])
def test_logits_there_and_back(tmp_path: Path, name: str) -> None:
    theirs = _save(name, tmp_path / "hf")
    assert format_of(tmp_path / "hf") == "hf-question-answering"
    found = FORMATS["hf-question-answering"].read([tmp_path / "hf"])
    logits, passages = _logits(found)
    assert not logits.selection.any(), "it prefers no passage"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for row in range(len(TEXTS)):
        encoded = tokenizer(QUESTIONS[row], TEXTS[row], return_tensors="pt")
        length = int(passages.tokens.lengths[row])
        assert encoded["input_ids"][0].tolist() == passages.tokens.ids[row, :length].tolist()
        with torch.no_grad():
            expected = theirs(**encoded)
        torch.testing.assert_close(logits.starts[row, :length], expected.start_logits[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(logits.ends[row, :length], expected.end_logits[0], rtol=0, atol=1e-5)

    weights = {**found.weights, "selection.weight": torch.randn(1, 32)}
    trained = ForeignModel(found.kind, found.shape, weights, found.vocabulary, found.layout, further=found.further)
    (tmp_path / "out").mkdir()
    FORMATS["hf-question-answering"].write(trained, tmp_path / "out")
    again = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in theirs.state_dict().items())
    back = FORMATS["hf-question-answering"].read([tmp_path / "out"])
    assert (back.shape, back.layout, back.further) == (found.shape, found.layout, found.further)
    assert all(torch.equal(back.weights[key], tensor) for key, tensor in weights.items())


def test_the_reader_of_dpr(tmp_path: Path) -> None:
    config = transformers.DPRConfig(**{**tiny_bert().config.to_dict(), "model_type": "dpr", "projection_dim": 0})
    torch.manual_seed(4)
    theirs = transformers.DPRReader(config).eval()
    save_with_vocabulary(theirs, tmp_path / "hf")
    assert format_of(tmp_path / "hf") == "hf-dpr-reader"
    found = FORMATS["hf-dpr-reader"].read([tmp_path / "hf"])
    logits, passages = _logits(found)
    mask = torch.arange(passages.tokens.ids.size(1)) < passages.tokens.lengths[:, None]
    with torch.no_grad():
        expected = theirs(input_ids=passages.tokens.ids, attention_mask=mask.long())
    torch.testing.assert_close(logits.selection, expected.relevance_logits.flatten(), rtol=0, atol=1e-5)
    for own, other in ((logits.starts, expected.start_logits), (logits.ends, expected.end_logits)):
        torch.testing.assert_close(own[mask], other[mask], rtol=0, atol=1e-5)
    with process_topology(ParallelConfig(device="cpu")) as topology:
        import_model("hf-dpr-reader", [tmp_path / "hf"], tmp_path / "checkpoint", topology)
    export_model("hf-dpr-reader", tmp_path / "checkpoint", tmp_path / "out")
    again = transformers.DPRReader.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in theirs.state_dict().items())
    assert EXTRACTIVE_READER.describe(tmp_path / "checkpoint").layout == found.layout


def test_spans_of_all_passages_compete(tmp_path: Path) -> None:
    """A reader that prefers no passage answers with the span of the highest logits."""
    theirs = _save("bert", tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    best: list[tuple[float, str]] = []
    for text in TEXTS:
        encoded = tokenizer(QUESTIONS[0], text, return_tensors="pt")
        with torch.no_grad():
            output = theirs(**encoded)
        words, start = text.split(), encoded["input_ids"].size(1) - 1 - len(text.split())
        sums: Tensor = output.start_logits[0, :, None] + output.end_logits[0]
        for first in range(len(words)):
            for last in range(first, len(words)):
                best.append((float(sums[start + first, start + last]), " ".join(words[first : last + 1])))
    with process_topology(ParallelConfig(device="cpu")) as topology:
        (answer,) = Reader.load(tmp_path, topology=topology, dtype="fp32").answer_all([QUESTIONS[0]], [TEXTS])
    assert answer.text == max(best)[1]


def test_what_is_no_reader_is_refused(tmp_path: Path) -> None:
    reads: Callable[[list[Path]], ForeignModel] = FORMATS["hf-question-answering"].read
    save_with_vocabulary(tiny_bert(), tmp_path / "bert")
    with pytest.raises(CheckpointError, match=r"qa_outputs\.weight is missing; is it a BertForQuestionAnswering or"):
        reads([tmp_path / "bert"])
    save_with_vocabulary(tiny_cross_encoder(), tmp_path / "scorer")
    with pytest.raises(CheckpointError, match=r"qa_outputs\.weight is missing"):
        reads([tmp_path / "scorer"])
