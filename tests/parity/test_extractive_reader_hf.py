"""Start, end and selection logits equal those of a Hugging Face BertModel under linear heads of the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from megatron_retrieval.checkpoint.huggingface.bert import bert_config_from_hf
from megatron_retrieval.checkpoint.huggingface.format import import_encoder
from megatron_retrieval.models.extractive_reader import ExtractiveReader
from megatron_retrieval.models.sharding import shard_of
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_hf import attention_mask, random_batch, tiny_bert
from megatron_retrieval.types.extractive import ExtractivePassages

TOLERANCE = 1e-5


def _passages(*, with_segments: bool) -> ExtractivePassages:
    tokens = random_batch()
    starts = torch.arange(len(tokens)) % 5
    return ExtractivePassages(tokens, starts if with_segments else None, starts)


def _logits(topology: ProcessTopology, full: dict[str, Tensor], with_segments: bool) -> list[Tensor]:
    config = bert_config_from_hf(tiny_bert().config.to_dict(), "tiny")
    reader = ExtractiveReader(config, topology).eval()
    for name, parameter in reader.named_parameters():
        parameter.data.copy_(shard_of(full[name], parameter, topology.tp_rank, topology.tp_size))
    with torch.no_grad():
        logits = reader(_passages(with_segments=with_segments))
    return [logits.starts.contiguous(), logits.ends.contiguous(), logits.selection.contiguous()]


@pytest.mark.parametrize(("tp_size", "with_segments"), [(1, True), (1, False), (2, True)])
def test_logits(tp_size: int, with_segments: bool) -> None:
    bert, passages = tiny_bert(), _passages(with_segments=with_segments)
    torch.manual_seed(1)
    span, selection = nn.Linear(bert.config.hidden_size, 2), nn.Linear(bert.config.hidden_size, 1)
    mask = attention_mask(passages.tokens)
    with torch.no_grad():
        states = bert(passages.tokens.ids, attention_mask=mask, token_type_ids=passages.segments).last_hidden_state
        starts, ends = span(states).unbind(2)
        selected = selection(states[:, 0])[:, 0]
    config = bert_config_from_hf(bert.config.to_dict(), "tiny")
    full = {f"bert.{name}": tensor for name, tensor in import_encoder(bert.state_dict(), config, "tiny").items()}
    for name, head in (("span", span), ("selection", selection)):
        full |= {f"{name}.{key}": tensor for key, tensor in head.state_dict().items()}
    for ours in run_on_ranks(_logits, tp_size, full, with_segments, tensor_model_parallel_size=tp_size):
        assert ((ours[0] - starts)[mask.bool()]).abs().max() < TOLERANCE
        assert ((ours[1] - ends)[mask.bool()]).abs().max() < TOLERANCE
        assert (ours[2] - selected).abs().max() < TOLERANCE
