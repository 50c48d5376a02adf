"""What a setting says of itself beside type and default: metadata of its field.

retriever: Path = field(metadata=formerly("load"))
train_data: tuple[str, ...] = field(metadata=INPUT)
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

Resuming = Literal["input", "held-out input", "free"]
_FORMERLY, _RESUMING = "formerly", "resuming"

#: the setting names files or folders that training learns from; a resumed run compares their contents, not their paths
INPUT: dict[str, Resuming] = {_RESUMING: "input"}
#: the same of files that only evaluation reads
HELD_OUT: dict[str, Resuming] = {_RESUMING: "held-out input"}
#: a resumed run may have another value without a word: where files are written to, or what the checkpoint replaces
FREE: dict[str, Resuming] = {_RESUMING: "free"}


def formerly(name: str) -> dict[str, str]:
    """The setting had another name; flags and YAML may use it until the next version, and one line says so."""
    return {_FORMERLY: name}


def former_name(field: dataclasses.Field[Any]) -> str | None:
    """See `formerly`."""
    return field.metadata.get(_FORMERLY)


def resuming(field: dataclasses.Field[Any]) -> Resuming | None:
    """What a resumed run makes of another value; None: the log says so."""
    return field.metadata.get(_RESUMING)
