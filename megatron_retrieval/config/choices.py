"""Settings whose values are the names of a registry's rows."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from tyro.constructors import PrimitiveConstructorSpec

from megatron_retrieval.utils.registry import Named, Registry


class OneOf(PrimitiveConstructorSpec[str]):
    """`Annotated[str, OneOf(REGISTRY)]`: the name of a row; which names there are is asked when flags are parsed."""

    def __init__(self, registry: Registry[Any]) -> None:
        object.__setattr__(self, "registry", registry)

    registry: Registry[Any]
    nargs = 1
    _action = None

    @property
    def choices(self) -> tuple[str, ...]:
        """The names, in the order in which they were registered."""
        return tuple(self.registry)

    @property
    def metavar(self) -> str:
        """The names as `--help` shows them."""
        return "{" + ",".join(self.choices) + "}"

    @staticmethod
    def instance_from_str(words: list[str]) -> str:
        return words[0]

    @staticmethod
    def is_instance(value: Any) -> bool:
        return isinstance(value, str)

    @staticmethod
    def str_from_instance(value: str) -> list[str]:
        return [value]


def registry_of(annotation: Any) -> Registry[Named] | None:
    """The registry that a field's annotation names, None where it names none."""
    for part in (annotation, *typing.get_args(annotation)):
        for extra in getattr(part, "__metadata__", ()):
            if isinstance(extra, OneOf):
                return extra.registry
    return None


def describe_choices(fields: Iterator[tuple[str, Any]]) -> str:
    """What the rows are that flags choose from, for `--help`.

    Args:
        fields: flags (without dashes) with their annotations.
    """
    lines = []
    for flag, annotation in fields:
        if (registry := registry_of(annotation)) is not None:
            lines += [f"--{flag}:", *(f"  {name}: {row.about}" for name, row in registry.items())]
    return "\n".join(lines)
