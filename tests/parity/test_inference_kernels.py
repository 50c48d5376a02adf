"""What CPUs compute by kernels and forms of their own is what the general ones compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.models import attention
from megatron_retrieval.models.attention import ScaledDotProductAttention, padding_bias
from megatron_retrieval.models.linear import linear


def _states(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


STATES = {
    "contiguous": _states(5, 6, 32),
    "transposed": _states(6, 5, 32).transpose(0, 1),
    "a slice": _states(5, 7, 32)[:, -1],
    "one row": _states(1, 32),
    "none": _states(0, 32),
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("has_bias", [False, True])
@torch.no_grad()
def test_matrix_products(name: str, has_bias: bool) -> None:
    weight, bias = _states(48, 32, seed=1), _states(48, seed=2) if has_bias else None
    expected = F.linear(STATES[name], weight, bias)
    torch.testing.assert_close(linear(STATES[name], weight, bias, training=False), expected, rtol=1e-5, atol=1e-5)


def test_training_keeps_its_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without gradients: passes that gradient caching repeats must agree."""
    states, weight = _states(5, 32), _states(48, 32, seed=1).requires_grad_()
    monkeypatch.setattr("megatron_retrieval.models.linear._ONEDNN_LINEAR", lambda *_: pytest.fail("not in training"))
    product = linear(states, weight, training=False)
    assert product.requires_grad
    with torch.no_grad():
        assert torch.equal(linear(states, weight, training=True), product)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 300), (4, 300), (40, 40)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@torch.no_grad()
def test_attention_of_short_sequences(
    num_queries: int, num_keys: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = ScaledDotProductAttention(scale=0.5, dropout=0.0).eval()
    query, key, value = (
        _states(length, 3, 2, 16, seed=seed).to(dtype) for seed, length in enumerate((num_queries, num_keys, num_keys))
    )
    bias = padding_bias(torch.tensor([num_keys, 7, 31]), num_keys, dtype, torch.device("cpu"))
    found = core(query, key, value, bias)
    monkeypatch.setattr(attention, "CPU_PLAIN_KEYS_INFERENCE", 0)
    monkeypatch.setattr(attention, "CPU_PLAIN_QUERIES", 0)
    torch.testing.assert_close(found, core(query, key, value, bias), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(40, 40), (3, 40), (1, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_of_short_sequences_in_training(
    is_causal: bool, num_queries: int, num_keys: int, dtype: torch.dtype, tolerance: float
) -> None:
    core = ScaledDotProductAttention(scale=0.5, dropout=0.0).train()
    lengths = (num_queries, num_keys, num_keys)
    states = [_states(length, 3, 2, 16, seed=seed) for seed, length in enumerate(lengths)]
    found = [each.to(dtype, copy=True).requires_grad_() for each in states]
    expected = [each.double().requires_grad_() for each in states]
    query, key, value = (each.permute(1, 2, 0, 3) for each in expected)
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=0.5)
    output = core(*found, None, is_causal=is_causal)
    weights = _states(*output.shape, seed=7)
    own = torch.autograd.grad((output * weights).sum(), found)
    exact = torch.autograd.grad((attended.permute(2, 0, 1, 3).flatten(2) * weights).sum(), expected)
    for gradient, reference in zip(own, exact, strict=True):
        torch.testing.assert_close(gradient.double(), reference, rtol=tolerance, atol=tolerance)
