"""TREC topics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from megatron_retrieval.data.files.json_records import Record
from megatron_retrieval.errors import DataError
from megatron_retrieval.utils.files import read_lines

_FIELD = re.compile(r"<(\w+)>\s*(?:Number:|Topic:|Description:|Narrative:)?", re.IGNORECASE)


def read_topics(path: Path) -> Iterator[Record]:
    """Yield {id, question} of every `<top>`: its `<num>` and its `<title>`, the short form of the question.

    Raises:
        DataError: a topic without number or title.
    """
    start, values, name = 0, {}, ""  # type: int, dict[str, list[str]], str
    for number, line in enumerate(read_lines(path), 1):
        text = line.strip()
        if text.lower() == "<top>":
            start, values, name = number, {}, ""
        elif text.lower() == "</top>":
            topic = {name: " ".join(" ".join(parts).split()) for name, parts in values.items()}
            missing = [name for name in ("num", "title") if not topic.get(name)]
            if missing:
                raise DataError(path, f"the topic has no <{missing[0]}>", line=start)
            yield Record(path, start, {"id": topic["num"], "question": topic["title"]})
        elif field := _FIELD.match(text):
            name = field[1].lower()
            values[name] = [text[field.end() :].removesuffix(f"</{field[1]}>")]
        elif name:
            values[name].append(text.removesuffix(f"</{name}>"))
