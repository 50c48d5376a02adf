"""A dual encoder's weights, vectors and gradients do not depend on the tensor-parallel size or on recompute."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.models.multi_head_attention import SelfAttention
from megatron_retrieval.parallel.megatron_compat import seed_dropout
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.types.tokens import TokenBatch

BERT = BertConfig(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    max_position_embeddings=16,
    vocab_size=130,
    init_method_std=0.2,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
CONFIG = DualEncoderConfig(encoder=BERT, pooling="mean", biencoder_projection_dim=8)
DROPOUT = dataclasses.replace(BERT, hidden_dropout=0.2, attention_dropout=0.2)
RECOMPUTE = dataclasses.replace(DROPOUT, recompute_granularity="full")


def _batch(seed: int, num_rows: int) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    # ids 128 and 129 lie in the second block of the padded vocabulary
    ids = torch.cat([torch.randint(0, 130, (num_rows, 8), generator=generator), torch.full((num_rows, 1), 129)], 1)
    return TokenBatch(ids, torch.randint(1, 10, (num_rows,), generator=generator))


def _loss(model: DualEncoder) -> Tensor:
    queries, passages = model(_batch(1, 3), _batch(2, 5))
    return torch.logsumexp(queries @ passages.t(), 1).sum()


def _weights_and_gradients(topology: ProcessTopology, config: DualEncoderConfig) -> dict[str, Any]:
    torch.manual_seed(topology.world_size)  # weights come from the seed that is given, whatever was drawn before
    model = DualEncoder(config, topology, seed=5)
    model.train()
    layer_calls: list[Any] = []
    first_part = next(module for module in model.modules() if isinstance(module, SelfAttention))
    first_part.register_forward_hook(lambda *call: layer_calls.append(call))
    seed_dropout(7, topology.tp_rank)
    loss = _loss(model)
    loss.backward()
    parameters = dict(model.named_parameters())
    return {
        "loss": loss.detach(),
        "layer calls": len(layer_calls),
        "weights": {name: gather_full(p, topology).clone() for name, p in parameters.items()},
        "gradients": {name: gather_full(p, topology, p.grad) for name, p in parameters.items()},
    }


@pytest.mark.parametrize("shared", [True, False])
def test_tensor_parallel_equals_one_process(shared: bool) -> None:
    config = dataclasses.replace(
        CONFIG,
        biencoder_shared_query_context_model=shared,
        normalize_embeddings=shared,
        biencoder_projection_norm=not shared,
    )
    (single,) = run_on_ranks(_weights_and_gradients, 1, config)
    assert single["weights"].keys() == single["gradients"].keys()
    for rank in run_on_ranks(_weights_and_gradients, 2, config, tensor_model_parallel_size=2):
        torch.testing.assert_close(rank["loss"], single["loss"])
        for name, weight in single["weights"].items():
            assert torch.equal(rank["weights"][name], weight), name
            torch.testing.assert_close(rank["gradients"][name], single["gradients"][name], msg=name)
            assert single["gradients"][name].abs().max() > 0, name


def test_recompute_gives_the_same_gradients() -> None:
    """Dropout is drawn again from the same streams, the one that ranks share and the one that they do not."""
    plain, recomputed = (
        run_on_ranks(_weights_and_gradients, 2, dataclasses.replace(CONFIG, encoder=bert), tensor_model_parallel_size=2)
        for bert in (DROPOUT, RECOMPUTE)
    )
    for without, with_recompute in zip(plain, recomputed, strict=True):
        assert torch.equal(without["loss"], with_recompute["loss"])
        assert (without["layer calls"], with_recompute["layer calls"]) == (1, 2)
        for name, gradient in without["gradients"].items():
            torch.testing.assert_close(with_recompute["gradients"][name], gradient, rtol=0, atol=1e-6, msg=name)


def _saved_with_a_norm(topology: ProcessTopology, folder: str) -> dict[str, Any]:
    """Vectors in evaluation, before and after a checkpoint, and in training."""
    config = dataclasses.replace(CONFIG, biencoder_projection_norm=True, biencoder_projection_dropout=0.5)
    model, vocabulary = DualEncoder(config, topology, seed=5), Path(folder) / "vocab.txt"
    vocabulary.write_text("".join(f"{word}\n" for word in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *range(125)]))
    DUAL_ENCODER.save(f"{folder}/saved", model, topology, config, WordPieceTokenizer(vocabulary), TextFormatConfig())
    found = DUAL_ENCODER.load(f"{folder}/saved", topology)
    with torch.no_grad():
        models = {"trained": model.train, "before": model.eval, "after": found.model.eval}
        return {name: in_mode().encode_queries(_batch(1, 3)) for name, in_mode in models.items()}


def test_a_projection_may_have_a_norm(tmp_path: Path) -> None:
    """ORQA's: numbers of mean 0 and variance 1, some of them dropped in training; checkpoints say so."""
    (found,) = run_on_ranks(_saved_with_a_norm, 1, str(tmp_path))
    torch.testing.assert_close(found["before"].mean(1), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(found["before"].var(1, correction=0), torch.ones(3), rtol=1e-4, atol=0)
    assert torch.equal(found["after"], found["before"])
    kept = found["trained"] != 0
    assert 0 < kept.float().mean() < 1
    with pytest.raises(ConfigError, match="--biencoder-projection-norm follows a projection"):
        DualEncoderConfig(biencoder_projection_norm=True)


def _behaviours(topology: ProcessTopology) -> dict[str, Any]:
    model = DualEncoder(dataclasses.replace(CONFIG, encoder=DROPOUT), topology)
    batch = _batch(1, 3)
    with torch.no_grad():
        results: dict[str, Any] = {"training": [model.encode_queries(batch) for _ in range(2)]}
        model.eval()
        results["evaluation"] = [model.encode_queries(batch) for _ in range(2)]
        padded = TokenBatch(torch.nn.functional.pad(batch.ids, (0, 5), value=9), batch.lengths)
        results["more padding"] = model.encode_queries(padded)
        results["passage"] = model.encode_passages(batch)
        for dtype in (torch.bfloat16, torch.float16):
            rounded = DualEncoder(model.config, topology, dtype).eval()
            assert all(parameter.dtype == dtype for parameter in rounded.parameters())
            results[str(dtype)] = rounded.encode_queries(batch)
    try:
        model.encode_queries(TokenBatch(torch.zeros(1, 17, dtype=torch.int64), torch.tensor([17])))
    except ConfigError as error:
        results["too long"] = str(error)
    return results


def test_modes_padding_and_number_formats() -> None:
    (results,) = run_on_ranks(_behaviours, 1)
    first, second = results["training"]
    assert not torch.equal(first, second), "dropout is active in training"
    first, second = results["evaluation"]
    assert torch.equal(first, second), "dropout is not active in evaluation"
    torch.testing.assert_close(results["more padding"], first, msg="padding changed a vector")
    assert not torch.allclose(results["passage"], first), "the two towers start from different weights"
    for dtype, least in ((torch.bfloat16, 0.999), (torch.float16, 0.99999)):
        assert results[str(dtype)].dtype == torch.float32
        assert torch.cosine_similarity(results[str(dtype)], first).min() > least
    assert "17 tokens exceeds the encoder's 16 positions" in results["too long"]
