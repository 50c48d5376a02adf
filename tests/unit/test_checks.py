"""Bounds of settings are checked when a configuration is made, directly or by the parser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from megatron_retrieval.config.checks import Bounds, Checked, Fraction, NonNegativeInt, PositiveFloat, PositiveInt
from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.errors import ConfigError


@dataclass(kw_only=True, frozen=True)
class Bounded(Checked):
    """A job."""

    topk: PositiveInt = 5
    """Passages."""
    stride: NonNegativeInt = 0
    """Stride."""
    max_questions: PositiveInt | None = None
    """Questions."""
    depths: tuple[PositiveInt, ...] = (1, 5)
    """Depths."""
    weight: Fraction = 0.5
    """Weight."""
    rate: PositiveFloat = 1.0
    """Rate."""
    seq_length: Annotated[int, Bounds(least=3, below=9, why="two special tokens and one more")] = 8
    """Tokens."""


OUT_OF_BOUNDS: list[tuple[dict[str, Any], str]] = [
    ({"topk": 0}, "--topk 0: must be at least 1."),
    ({"stride": -1}, "--stride -1: must be at least 0."),
    ({"max_questions": 0}, "--max-questions 0: must be at least 1."),
    ({"depths": (5, 0)}, "--depths 5 0: must be at least 1."),
    ({"depths": ()}, "--depths (nothing): must be at least 1."),
    ({"weight": 1.5}, "--weight 1.5: must be at least 0 and at most 1."),
    ({"weight": float("nan")}, "--weight nan: must be at least 0 and at most 1."),
    ({"rate": 0.0}, "--rate 0.0: must be above 0."),
    ({"seq_length": 2}, "--seq-length 2: must be at least 3 and below 9; two special tokens and one more."),
    ({"seq_length": 9}, "--seq-length 9: must be at least 3 and below 9; two special tokens and one more."),
]


@pytest.mark.parametrize(("settings", "sentence"), OUT_OF_BOUNDS)
def test_out_of_bounds(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Bounded(**settings)
    assert str(refused.value) == sentence


def test_within_bounds() -> None:
    Bounded(topk=1, max_questions=1, depths=(1,), weight=0.0, rate=1e-9, seq_length=3)
    Bounded(weight=1.0, seq_length=8)


def test_the_parser_checks() -> None:
    assert parse_config(Bounded, ["--topk", "3", "--depths", "2", "4", "--max-questions", "7"]) == Bounded(
        topk=3, depths=(2, 4), max_questions=7
    )
    with pytest.raises(ConfigError, match=r"--depths 2 0: must be at least 1\."):
        parse_config(Bounded, ["--depths", "2", "0"])
