"""Rows by name: the choices of one kind, to which code outside of the package adds its own."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Protocol, TypeVar

from megatron_retrieval.errors import ConfigError


class Named(Protocol):
    """A row of a registry."""

    @property
    def name(self) -> str:
        """What flags, files and messages call it."""
        ...

    @property
    def about(self) -> str:
        """What it is, in one clause, for `--help`."""
        ...


Row = TypeVar("Row", bound=Named)


class Registry(Mapping[str, Row]):
    """The rows of one kind by name, in the order in which they were added.

    Args:
        what: the kind, in messages.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._rows: dict[str, Row] = {}

    def add(self, row: Row) -> Row:
        """Add a row and return it.

        Raises:
            ValueError: another row has its name.
        """
        if row.name in self._rows:
            raise ValueError(f"the {self.what} {row.name!r} is registered already")
        self._rows[row.name] = row
        return row

    def __getitem__(self, name: str) -> Row:
        """The row of this name.

        Raises:
            ConfigError: there is none; the message suggests the nearest.
        """
        try:
            return self._rows[name]
        except KeyError:
            raise ConfigError(self.unknown(name)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def unknown(self, name: str) -> str:
        """A sentence about a name that no row has."""
        nearest = difflib.get_close_matches(name, self._rows, n=1)
        hint = f" Perhaps you meant {nearest[0]!r}." if nearest else ""
        return (
            f"unknown {self.what} {name!r}; choose one of {', '.join(self._rows)}.{hint} "
            "One that is not part of the package needs --extensions MODULE."
        )
