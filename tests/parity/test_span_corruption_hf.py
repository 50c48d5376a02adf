"""T5's pretraining: the loss on a batch of the data is Hugging Face's, of the model as it is exported."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from megatron_retrieval.checkpoint.huggingface.formats import export_model
from megatron_retrieval.checkpoint.kinds.t5 import T5_KIND
from megatron_retrieval.data.examples.span_corruption import SpanCorruptionDataConfig, SpanCorruptionDataset
from megatron_retrieval.data.layouts.blocks import BlockConfig
from megatron_retrieval.data.stores.corpus import CorpusStore
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import write_tiny_corpus
from megatron_retrieval.testing.tiny_hf import attention_mask
from megatron_retrieval.testing.tiny_sentencepiece import NUM_PIECES
from megatron_retrieval.training.steps.span_corruption_step import SpanCorruptionConfig, SpanCorruptionStep
from megatron_retrieval.training.trainer import reduce_metrics
from megatron_retrieval.types.pretraining import CorruptedBatch

SHAPE = T5Config(num_layers=2, hidden_size=32, num_attention_heads=4, ffn_hidden_size=64, vocab_size=NUM_PIECES + 100)


def _batch(corpus: Path, dp_rank: int = 0, dp_size: int = 1) -> CorruptedBatch:
    data = SpanCorruptionDataConfig(blocks=BlockConfig(data_path=str(corpus)), seq_length=64, mask_prob=0.3)
    store = CorpusStore(corpus)
    return SpanCorruptionDataset(data, store, np.arange(len(store)), seed=5).batch(range(7), 0, 0, dp_rank, dp_size)


def _evaluated(topology: ProcessTopology, corpus: str, output: str) -> dict[str, float]:
    """The step's own numbers, and on the way a checkpoint of the model."""
    model = T5(SHAPE, topology, seed=3)
    with torch.no_grad():  # what is read must matter
        for layer in model.decoder.layers:
            layer.cross_attention.linear_proj.weight.mul_(4)
    T5_KIND.save(output, model, topology, SHAPE, CorpusStore(corpus).vocabulary)
    step = SpanCorruptionStep(model, SpanCorruptionConfig(micro_batch_size=3), topology, seed=3)
    return reduce_metrics(step.evaluate(_batch(Path(corpus), topology.dp_rank, topology.dp_size)), topology)


@pytest.mark.parametrize(("num_ranks", "tp_size"), [(1, 1), (2, 2), (2, 1)])
def test_loss(tmp_path: Path, num_ranks: int, tp_size: int) -> None:
    corpus, saved = write_tiny_corpus(tmp_path, sentencepiece=True), tmp_path / "t5"
    ours, *_ = run_on_ranks(_evaluated, num_ranks, str(corpus), str(saved), tensor_model_parallel_size=tp_size)
    export_model("hf-t5", saved, tmp_path / "hf")
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    batch = _batch(corpus)
    labels = batch.labels.masked_fill(batch.labels < 0, -100)
    with torch.no_grad():
        expected = theirs(batch.tokens.ids, attention_mask(batch.tokens), labels=labels)
    assert ours["loss"] == pytest.approx(float(expected.loss), rel=1e-5)
    right = expected.logits.argmax(2)[labels >= 0] == labels[labels >= 0]
    assert ours["accuracy"] == pytest.approx(float(right.float().mean()), rel=1e-5)
    assert ours["num_target_tokens"] == len(right) > 7 * 10


def test_their_tokenizer_reads_gaps_and_spans(tmp_path: Path) -> None:
    """Sentinels count up on both sides, and spans put into their gaps make the text."""
    corpus = write_tiny_corpus(tmp_path, sentencepiece=True)
    tokenizer, batch = transformers.T5Tokenizer.from_pretrained(corpus), _batch(corpus)
    for row in range(4):
        sides = batch.tokens.ids[row, : batch.tokens.lengths[row]], batch.labels[row][batch.labels[row] >= 0]
        read, written = (tokenizer.decode(side) for side in sides)
        names = re.findall("<extra_id_[0-9]+>", read)
        assert names == re.findall("<extra_id_[0-9]+>", written) == [f"<extra_id_{n}>" for n in range(len(names))]
        assert len(names) > 1
        between, spans = (re.split("<extra_id_[0-9]+>", side.removesuffix("</s>")) for side in (read, written))
        assert not spans[0]
        text = "".join(part for pair in zip(spans, between, strict=True) for part in pair)
        sentences = "".join(f"The box of key{row} stands in room {row + number}." for number in range(6))
        assert "".join(text.split()) == f"Title {row}{sentences}".replace(" ", "")
