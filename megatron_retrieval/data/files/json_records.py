"""JSON lists and JSON lines read record by record, each record knowing its file and line for error messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_retrieval.data.files.json_text import JsonText, not_json
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import read_lines

#: whole numbers up to this one are floats without rounding
_EXACT_FLOATS = 1 << 53


@dataclass(frozen=True)
class Record:
    """One JSON object with its file and line, which its errors name."""

    path: Path
    line: int | None
    values: dict[str, Any]

    def error(self, problem: str, hint: str = "") -> DataError:
        return DataError(self.path, problem, line=self.line, hint=hint)

    def first(self, *keys: str) -> tuple[str, Any]:
        """(key, value) of the first of `keys` with a value; ("", None) where all are missing, null or NaN (pandas)."""
        for key in keys:
            value = self.values.get(key)
            if value is not None and value == value:
                return key, value
        return "", None

    def text(self, *keys: str, default: str | None = None) -> str:
        """The string or number at the first of `keys` with a value; `default` where there is none."""
        key, value = self.first(*keys)
        if key:
            return self._text(key, value)
        if default is None:
            raise self._missing(keys, "a string")
        return default

    def strings(self, *keys: str, required: bool = True) -> tuple[str, ...]:
        """The strings or numbers at the first of `keys` that is there; a single one counts as a list of one.

        Null counts as none, and so does a missing key that is not required. Hugging Face's SQuAD rows hold the list
        as `text` of an object.
        """
        key, value = self.first(*keys)
        if not key:
            if required and self.values.keys().isdisjoint(keys):
                raise self._missing(keys, "a list of strings")
            return ()
        if isinstance(value, dict):
            value = value.get("text")
        items = value if isinstance(value, list) else [value]
        if any(isinstance(item, list | dict) or item is None for item in items):
            raise self.error(f"{key!r} must be a list of strings")
        return tuple(self._text(key, item) for item in items)

    def identifier(self, *keys: str) -> str:
        """The string or whole number at the first of `keys` with a value, as it is; empty where there is none.

        A float is the whole number that it was before pandas met a missing one.
        """
        key, value = self.first(*keys)
        if not key:
            return ""
        if isinstance(value, bool | list | dict) or (isinstance(value, float) and not value.is_integer()):
            raise self.error(f"{key!r} must be a string or a whole number")
        if isinstance(value, float) and abs(value) > _EXACT_FLOATS:
            raise self.error(f"{key!r} is a float, which rounds numbers of this size", "Write ids as strings.")
        return self._text(key, value)

    def records(self, *keys: str, required: bool = True) -> list[Record]:
        """The list of objects at the first of `keys` with a value; empty where there is none and none is required."""
        key, value = self.first(*keys)
        if not key and not required:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise (
                self._missing(keys, "a list of objects")
                if not key
                else self.error(f"{key!r} must be a list of objects")
            )
        return [Record(self.path, self.line, item) for item in value]

    def _missing(self, keys: Sequence[str], what: str) -> DataError:
        null = next((key for key in keys if key in self.values), None)
        return self.error(f"{null!r} must be {what}" if null else f"there is no {' or '.join(map(repr, keys))}")

    def _text(self, key: str, value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.error(f"{key!r} must be a string")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return self._encodable(key, str(value))

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
            raise not_json(path, error, number) from error
        if not isinstance(value, dict):
            raise DataError(path, "expected one JSON object a line", line=number)
        yield Record(Path(path), number, value)


def read_json_list(path: str | Path) -> Iterator[Record]:
    """Yield the objects of a JSON list, plain or gzip, holding one of them at a time.

    Raises:
        DataError: no list of objects, cut off, or the file cannot be read.
    """
    text = JsonText(Path(path))
    yield from _items(text)
    if text.peek():
        raise text.error("text after the end of the JSON list")


def read_json_member(path: str | Path, key: str) -> Iterator[Record]:
    """Yield the objects of the list that a JSON object holds at `key`, one at a time; other members are passed over.

    Raises:
        DataError: no object with such a list, cut off, or the file cannot be read.
    """
    text, is_found, opening = JsonText(Path(path)), False, "{"
    while text.peek() == opening:
        text.skip()
        if opening == "{" and text.peek() == "}":
            break
        if text.key() == key:
            is_found = True
            yield from _items(text)
        else:
            text.value()
        opening = ","
    text.end_of_object(opening)
    if not is_found:
        raise text.error(f"there is no {key!r}")


def _items(text: JsonText) -> Iterator[Record]:
    """The objects of the list that begins at the cursor, which is then behind it."""
    if text.peek() != "[":
        raise text.error("expected a JSON list")
    text.skip()
    if text.peek() != "]":
        while True:
            if text.peek() not in ("{", ""):
                raise text.error("expected a JSON object")
            line = text.line
            yield Record(text.path, line, text.value())
            if text.peek() != ",":
                break
            text.skip()
    if text.peek() != "]":
        raise text.error("not valid JSON (expected ',' or ']')", hint="Is the file cut off?")
    text.skip()


def read_json_map(path: str | Path) -> Iterator[Record]:
    """Yield the objects that one JSON object holds, as Pyserini writes results, one at a time; each has its key as
    `id` unless it has one.

    Raises:
        DataError: no object of objects, cut off, or the file cannot be read.
    """
    text, opening = JsonText(Path(path)), "{"
    while text.peek() == opening:
        text.skip()
        if opening == "{" and text.peek() == "}":
            break
        line, key = text.line, text.key()
        value = text.value()
        if not isinstance(value, dict):
            raise text.error(f"expected an object at {key!r}")
        yield Record(text.path, line, {"id": key, **value})
        opening = ","
    text.end_of_object(opening)
