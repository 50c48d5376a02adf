"""JSON lists and JSON lines read record by record, each record knowing its file and line for error messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import read_chunks, read_lines

#: longest token of JSON other than a string ("-Infinity", an escape)
_LONGEST_ATOM = 16


@dataclass(frozen=True)
class Record:
    """One JSON object with its file and line, which its errors name."""

    path: Path
    line: int | None
    values: dict[str, Any]

    def error(self, problem: str, hint: str = "") -> DataError:
        return DataError(self.path, problem, line=self.line, hint=hint)

    def text(self, key: str, default: str | None = None) -> str:
        """The string at `key`; `default` where there is none."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.error(f"{key!r} must be a string" if key in self.values else f"there is no {key!r}")
        return self._encodable(key, value)

    def strings(self, *keys: str) -> tuple[str, ...]:
        """The list of strings at the first of `keys` that is there; a single string counts as a list of one."""
        key = next((key for key in keys if key in self.values), None)
        if key is None:
            raise self.error(f"there is no {' or '.join(map(repr, keys))}")
        value = self.values[key]
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise self.error(f"{key!r} must be a list of strings")
        return tuple(self._encodable(key, item) for item in items)

    def identifier(self, *keys: str) -> str:
        """The string or whole number at the first of `keys` that is there, as a string; empty where there is none."""
        key = next((key for key in keys if self.values.get(key) is not None), None)
        if key is None:
            return ""
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.error(f"{key!r} must be a string or a whole number")
        return self._encodable(key, str(value))

    def records(self, key: str, *, required: bool = True) -> list[Record]:
        """The list of objects at `key`; empty where there is none and it is not required."""
        if key not in self.values and not required:
            return []
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.error(f"{key!r} must be a list of objects" if key in self.values else f"there is no {key!r}")
        return [Record(self.path, self.line, item) for item in value]

    def _encodable(self, key: str, value: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.error(f"{key!r} holds half of a surrogate pair, which is no character") from error
        return value


def read_json_lines(path: str | Path) -> Iterator[Record]:
    """Yield the objects of a JSONL file, plain or gzip; blank lines are skipped.

    Raises:
        DataError: a line is no JSON object, or the file cannot be read.
    """
    for number, line in enumerate(read_lines(path), 1):
        if line.isspace():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise _not_json(path, error, number) from error
        if not isinstance(value, dict):
            raise DataError(path, "expected one JSON object a line", line=number)
        yield Record(Path(path), number, value)


def read_json_list(path: str | Path) -> Iterator[Record]:
    """Yield the objects of a JSON list, plain or gzip, holding one of them at a time.

    Raises:
        DataError: no list of objects, cut off, or the file cannot be read.
    """
    text = _JsonText(Path(path))
    if text.peek() != "[":
        raise text.error("expected a JSON list")
    text.skip()
    if text.peek() != "]":
        while True:
            if text.peek() not in ("{", ""):
                raise text.error("expected a JSON object")
            line = text.line
            yield Record(Path(path), line, text.value())
            if text.peek() != ",":
                break
            text.skip()
    if text.peek() != "]":
        raise text.error("not valid JSON (expected ',' or ']')", hint="Is the file cut off?")
    text.skip()
    if text.peek():
        raise text.error("text after the end of the JSON list")


def _not_json(path: str | Path, error: json.JSONDecodeError, line: int) -> DataError:
    return DataError(path, f"not valid JSON ({error.msg})", line=line, hint="Is the file cut off?")


class _JsonText:
    """A cursor over a JSON text; only a window of the text is in memory."""

    def __init__(self, path: Path) -> None:
        self.line = 1
        self._path, self._chunks, self._decoder = path, read_chunks(path), json.JSONDecoder()
        self._window, self._position = "", 0

    def error(self, problem: str, hint: str = "") -> DataError:
        return DataError(self._path, problem, line=self.line, hint=hint)

    def peek(self) -> str:
        """The next character that is no white space, or nothing at the end."""
        while True:
            rest = json.decoder.WHITESPACE.match(self._window, self._position)  # type: ignore[attr-defined]
            self._advance(rest.end())
            if self._position < len(self._window):
                return self._window[self._position]
            if not self._widen():
                return ""

    def skip(self) -> None:
        self._advance(self._position + 1)

    def value(self) -> Any:
        """The value that begins at the cursor."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._window, self._position)
            except json.JSONDecodeError as error:
                at_end = error.pos >= len(self._window) - _LONGEST_ATOM or error.msg.startswith("Unterminated string")
                if at_end and self._widen():
                    continue
                newlines = self._window.count("\n", self._position, error.pos)
                raise _not_json(self._path, error, self.line + newlines) from error
            self._advance(end)
            return value

    def _advance(self, position: int) -> None:
        self.line += self._window.count("\n", self._position, position)
        self._position = position

    def _widen(self) -> bool:
        """Read on, at least doubling the window, so that a long value is parsed few times."""
        pieces = [self._window[self._position :]]
        wanted, ahead = 2 * len(pieces[0]), len(pieces[0])
        for chunk in self._chunks:
            pieces.append(chunk)
            ahead += len(chunk)
            if ahead >= wanted:
                break
        self._window, self._position = "".join(pieces), 0
        return len(pieces) > 1
