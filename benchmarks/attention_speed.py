"""CPU time of attention in training, in the plain form beside the fused kernel.

A step is forwards and backwards without dropout, where padding is hidden, or later tokens are. The two take turns, and
a round's ratio is that of neighbours: below 1 the plain form is faster. `models/attention.py` chooses by these.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from rivals.rounds import in_turns, medians, ratio_cells
from torch.nn import functional as F

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.models.attention import causal_bias, padding_bias, plain_attention
from megatron_retrieval.reports.tables import text_table


@dataclass(kw_only=True, frozen=True)
class AttentionSpeedConfig(Checked):
    """Compare the forms of attention in training on CPU."""

    num_keys: tuple[PositiveInt, ...] = (16, 64, 128, 250, 320, 384)
    """Tokens of a sequence, several numbers one after the other."""
    num_tokens: PositiveInt = 4096
    """Tokens of a step, whatever the sequences' length."""
    num_attention_heads: PositiveInt = 9
    """Attention heads."""
    head_width: PositiveInt = 64
    """Width of a head."""
    num_rounds: PositiveInt = 5
    """Steps of each form that are timed."""
    bf16: bool = False
    """Compute in bfloat16."""


def main(config: AttentionSpeedConfig) -> None:
    torch.set_num_threads(1)
    rows = [_row(config, num_keys, is_causal=is_causal) for num_keys in config.num_keys for is_causal in (False, True)]
    header = ["keys", "hidden", "fused, ms", "plain, ms", "plain / fused", "rounds"]
    sys.stdout.write(text_table(header, rows) + "\n")


def _row(config: AttentionSpeedConfig, num_keys: int, *, is_causal: bool) -> list[str]:
    dtype, random = torch.bfloat16 if config.bf16 else torch.float32, torch.Generator().manual_seed(0)
    num_rows = max(1, config.num_tokens // num_keys)
    size = (num_keys, num_rows, config.num_attention_heads, config.head_width)  # the order of the models
    query, key, value, gradient = (
        torch.randn(size, generator=random).to(dtype).permute(1, 2, 0, 3).requires_grad_() for _ in range(4)
    )
    lengths = torch.full((num_rows,), num_keys - num_keys // 8)
    padding = None if is_causal else padding_bias(lengths, num_keys, dtype, torch.device("cpu"))

    def fused() -> None:
        output = F.scaled_dot_product_attention(query, key, value, padding, is_causal=is_causal)
        torch.autograd.grad(output, (query, key, value), gradient)

    def plain() -> None:
        bias = causal_bias(num_keys, 0, dtype, torch.device("cpu")) if is_causal else padding
        output = plain_attention(query, key, value, bias, 0.0, config.head_width**-0.5)
        torch.autograd.grad(output, (query, key, value), gradient)

    in_turns([fused, plain], 1, "cpu")  # warms up
    seconds = in_turns([fused, plain], config.num_rounds, "cpu")
    return [
        str(num_keys),
        "later tokens" if is_causal else "padding",
        *(f"{1000 * median:.1f}" for median in medians(seconds)),
        *ratio_cells(seconds),
    ]


if __name__ == "__main__":
    run_program(AttentionSpeedConfig, main)
