"""What a setting says of itself beside type and default: metadata of its field.

retriever: Path = field(metadata=formerly("load"))
train_data: tuple[str, ...] = field(metadata=INPUT)
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Resuming = Literal["input", "held-out input", "free"]
_FORMERLY, _RESUMING, _LATER = "formerly", "resuming", "later"

#: the setting names files or folders that training learns from; a resumed run compares their contents, not their paths
INPUT: dict[str, Resuming] = {_RESUMING: "input"}
#: the same of files that only evaluation reads
HELD_OUT: dict[str, Resuming] = {_RESUMING: "held-out input"}
#: a resumed run may have another value without a word: where files are written to, or what the checkpoint replaces
FREE: dict[str, Resuming] = {_RESUMING: "free"}
#: manifests were written before there was the setting, and what they describe has its default
LATER: dict[str, bool] = {_LATER: True}


def formerly(name: str) -> dict[str, str]:
    """The setting had another name; flags and YAML may use it until the next version, and one line says so."""
    return {_FORMERLY: name}


def former_name(field: dataclasses.Field[Any]) -> str | None:
    """See `formerly`."""
    return field.metadata.get(_FORMERLY)


def resuming(field: dataclasses.Field[Any]) -> Resuming | None:
    """What a resumed run makes of another value; None: the log says so."""
    return field.metadata.get(_RESUMING)


def is_later(field: dataclasses.Field[Any]) -> bool:
    """See `LATER`."""
    return _LATER in field.metadata
