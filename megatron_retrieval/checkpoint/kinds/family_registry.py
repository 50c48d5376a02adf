"""Shapes of several classes under one kind of model: a manifest names the row whose class it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

from megatron_retrieval.utils.registry import Named, Registry


class ShapeRow(Named, Protocol):
    """A row that says whose shapes are of a class.

    Attributes:
        shape: the class.
        vocabulary: name of the kind of vocabulary that such models read, see `VOCABULARIES`.
    """

    @property
    def shape(self) -> type[Any]: ...
    @property
    def vocabulary(self) -> str: ...


Row = TypeVar("Row", bound=ShapeRow)


class Families(Registry[Row], Generic[Row]):
    """Rows by name, each with a class of shapes.

    Args:
        what: a row, in messages.
        key: the setting of manifests that names a row.
        default: the row that manifests without the setting speak of.
    """

    def __init__(self, what: str, key: str, default: str) -> None:
        super().__init__(what)
        self.key, self.default = key, default

    def saved(self, settings: Mapping[str, Any]) -> Row:
        """The row that a manifest's settings speak of.

        Raises:
            ConfigError: one that is not registered.
        """
        return self[settings.get(self.key, self.default)]

    def of(self, shape: Any) -> Row:
        """The row that a shape belongs to.

        Raises:
            ValueError: no row has shapes of this class.
        """
        rows = [row for row in self.values() if row.shape is type(shape)]
        if not rows:
            raise ValueError(f"no {self.what} has the shape {type(shape).__name__}")
        return rows[0]
