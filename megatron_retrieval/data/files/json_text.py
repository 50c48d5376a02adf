"""A cursor over JSON that is larger than memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import read_chunks

#: longest token of JSON other than a string ("-Infinity", an escape)
_LONGEST_ATOM = 16


def not_json(path: str | Path, error: json.JSONDecodeError, line: int) -> DataError:
    """The error of a text that is no JSON, at a line of a file."""
    return DataError(path, f"not valid JSON ({error.msg})", line=line, hint="Is the file cut off?")


class JsonText:
    """A cursor over a JSON text; only a window of the text is in memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.line = path, 1
        self._chunks, self._decoder = read_chunks(path), json.JSONDecoder()
        self._window, self._position = "", 0

    def error(self, problem: str, hint: str = "") -> DataError:
        return DataError(self.path, problem, line=self.line, hint=hint)

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

    def key(self) -> str:
        """The key of a member that begins at the cursor, which is then at its value."""
        key = self.value() if self.peek() == '"' else None
        if key is None or self.peek() != ":":
            raise self.error("expected a key and its value")
        self.skip()
        self.peek()
        return str(key)

    def end_of_object(self, opening: str) -> None:
        """Pass the end of an object, and of the text; `opening` is what a further member would have begun with."""
        if self.peek() != "}":
            expected = "a JSON object" if opening == "{" else "',' or '}'"
            raise self.error(f"not valid JSON (expected {expected})", hint="Is the file cut off?")
        self.skip()
        if self.peek():
            raise self.error("text after the end of the JSON object")

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
                raise not_json(self.path, error, self.line + newlines) from error
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
