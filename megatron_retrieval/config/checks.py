"""Bounds of settings, written as field types and checked whenever a configuration is made.

An example:

    @dataclass(kw_only=True, frozen=True)
    class SearchConfig(Checked):
        topk: PositiveInt = 5
        dense_weight: Fraction = 0.5
        max_questions: PositiveInt | None = None
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from megatron_retrieval.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a number must be; None: no such bound.

    Attributes:
        least: it is this or more.
        above: it is more than this.
        most: it is this or less.
        below: it is less than this.
        why: ends the error message: the reason, or what to do instead.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    why: str = ""

    def allow(self, value: float) -> bool:
        """Whether the number is within; NaN never is."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """As in "must be at least 0 and below 1"."""
        named = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{name} {bound:g}" for name, bound in named.items() if bound is not None)


PositiveInt = Annotated[int, Bounds(least=1)]
NonNegativeInt = Annotated[int, Bounds(least=0)]
PositiveFloat = Annotated[float, Bounds(above=0)]
NonNegativeFloat = Annotated[float, Bounds(least=0)]
Fraction = Annotated[float, Bounds(least=0, most=1)]


class Checked:
    """Base of the configurations that have a field with `Bounds`.

    A tuple of bounded numbers must not be empty. A class with a `__post_init__` of its own calls this one first.

    Raises:
        ConfigError: a field is out of its bounds; the message names the flag, the value and the bounds.
    """

    def __post_init__(self) -> None:
        config_class: type = type(self)
        for name, bounds in field_bounds(config_class):
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else () if value is None else (value,)
            if value == () or not all(map(bounds.allow, numbers)):
                given = " ".join(map(str, numbers)) or "(nothing)"
                why = f"; {bounds.why}" if bounds.why else ""
                raise ConfigError(f"--{name.replace('_', '-')} {given}: must be {bounds}{why}.")


@cache
def field_bounds(config_class: type) -> tuple[tuple[str, Bounds], ...]:
    """The fields that have bounds: name and bounds."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    return tuple((name, bounds) for name, hint in hints.items() for bounds in _bounds_in(hint))


def _bounds_in(hint: Any) -> Iterator[Bounds]:
    """Those of a type, be it optional or a tuple of numbers."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        yield from (note for note in hint.__metadata__ if isinstance(note, Bounds))
    elif origin in (typing.Union, types.UnionType, tuple):
        for part in typing.get_args(hint):
            yield from _bounds_in(part)
