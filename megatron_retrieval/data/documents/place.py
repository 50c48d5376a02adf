"""Where a passage comes from: a file below a folder, and a page, row or line of it; all of it stands in its id."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Self
from urllib.parse import quote_from_bytes, unquote_to_bytes

_FRAGMENT = re.compile(r"(?:(page|row|line)=([1-9]\d*)&)?passage=([1-9]\d*)")


@dataclass(frozen=True)
class Place:
    """Where a passage comes from. Its id is a relative URL, so that every file of ids or results says it, and nothing
    else has to be kept: `reports/annual%20report.pdf#page=3&passage=7`. Browsers open the file at the page (RFC 8118).

    Attributes:
        file: relative to the folder of the documents, with slashes.
        at: "page=3", "row=3" (of a table, without its header) or "line=3" (of JSON lines), from 1; empty: unknown.
        passage: number in the file, from 1.
    """

    file: str
    at: str
    passage: int

    @property
    def id(self) -> str:
        """The id of the passage; it has no white space."""
        path = quote_from_bytes(os.fsencode(self.file))  # a name need not be valid Unicode
        return f"{path}#{self.at}{'&' if self.at else ''}passage={self.passage}"

    @classmethod
    def of(cls, passage_id: str) -> Self | None:
        """The place that an id tells; None for ids of other evidence, and for those that lead out of the folder."""
        path, _, fragment = passage_id.partition("#")
        if not path or not (found := _FRAGMENT.fullmatch(fragment)):
            return None
        file = os.fsdecode(unquote_to_bytes(path))
        if file.startswith("/") or ".." in PurePosixPath(file).parts or "\0" in file:
            return None
        return cls(file, f"{found[1]}={found[2]}" if found[1] else "", int(found[3]))

    def __str__(self) -> str:
        """For people: "annual report.pdf, page 3"."""
        name = os.fsencode(self.file).decode(errors="replace")
        return f"{name}, {self.at.replace('=', ' ')}" if self.at else name
