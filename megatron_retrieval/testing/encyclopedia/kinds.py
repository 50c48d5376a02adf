"""The kinds of entities of the mini encyclopedia, read from the YAML files under `patterns`.

A kind lists its passages, each a group of relations told together; a relation says how its value is made, how
passages state it and, in other words, how questions ask for it. `{name}` stands for the entity, `{value}` for the
value.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Relation:
    """One fact about every entity of a kind."""

    value: str
    """What makes the value: a generator of values.py, or a column of the kind's table."""
    says: tuple[str, ...]
    """Sentences that state the fact."""
    asks: tuple[str, ...]
    """Questions that ask for it."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One sort of entity: towns, ships, chemical elements."""

    noun: str
    """Stands for the name from a passage's second sentence on, as in "the town"."""
    passages: tuple[tuple[str, ...], ...]
    """Names of the relations that each passage tells."""
    relations: Mapping[str, Relation]
    fillers: tuple[str, ...]
    """Sentences without a fact that anybody asks for."""
    name: str = ""
    """Generator of values.py that makes the names; empty for real entities."""
    count: int = 0
    """Number of generated entities."""
    table: str = ""
    """File under `facts` with the real entities; empty for generated ones."""
    article: str = ""
    """Word before the name in sentences, as in "the Nile"."""

    def rows(self) -> list[dict[str, str]]:
        """The real entities, one mapping from column to value each."""
        with open(FOLDER / "facts" / f"{self.table}.tsv", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t"))


@cache
def load_kinds() -> dict[str, Kind]:
    """Every kind by its name, in the order of the files."""
    kinds: dict[str, Kind] = {}
    for file in ("real", "places", "people", "things"):
        text = (FOLDER / "patterns" / f"{file}.yaml").read_text(encoding="utf-8")
        kinds |= {name: _kind(settings) for name, settings in yaml.safe_load(text).items()}
    return kinds


def _kind(settings: Mapping[str, Any]) -> Kind:
    relations = {
        name: Relation(value=relation["value"], says=tuple(relation["says"]), asks=tuple(relation["asks"]))
        for name, relation in settings["relations"].items()
    }
    passages = tuple(tuple(group) for group in settings["passages"])
    return Kind(**{**settings, "relations": relations, "passages": passages, "fillers": tuple(settings["fillers"])})
