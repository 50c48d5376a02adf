"""A page of chunks with the neighbours that were read for them, and what every token gained by these, in colour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.data.examples.retro_windows import RetroWindows
from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.data.stores.neighbors import NeighborStore
from megatron_retrieval.reports.html import page_end, page_start
from megatron_retrieval.utils.files import atomic_file

PAGE = "examples.html"
NUM_SHOWN = 2
#: gain in nats at which the colour is full
FULL_NATS = 2.0

_NOTE = (
    "<p><small>The chunk whose neighbours are read, then what follows it: green tokens cost less with the neighbours "
    "than without, red ones more; the title of a token says by how many nats. Underlined in a neighbour: the chunk "
    "behind the one that was found.</small></p>\n"
)
_STYLE = """
.text { font-family: var(--serif); white-space: pre-wrap; overflow-wrap: anywhere; }
.found { border-left: 2px solid var(--line); padding-left: .7rem; font-size: .92rem; }
"""


def write_retro_page(
    path: Path,
    chunks: ChunkStore,
    neighbors: NeighborStore,
    windows: RetroWindows,
    costs: Mapping[str, NDArray[np.float64]],
    rows: NDArray[np.int64],
) -> None:
    """Write one self-contained HTML file. All text is escaped.

    Args:
        costs: of `windows`' predicted tokens in nats, with the arms "on" and "off".
        rows: chunks whose gain is shown; the first of a document has no chunk before it.
    """
    gains = costs["off"] - costs["on"]
    with atomic_file(path) as file:
        file.write(page_start("What neighbours were good for", _STYLE) + _NOTE)
        for row in rows.tolist():
            file.writelines(_chunk(chunks, neighbors, row, gains[windows.rows == row]))
        file.write(page_end())


def write_continuations(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a page of texts that were continued, likewise in one file.

    Args:
        records: lines of continuations.jsonl.
    """
    note = "<p><small>Marked: the beginning of what follows a neighbour, where the text went on with it.</small></p>\n"
    with atomic_file(path) as file:
        file.write(page_start("What was written, and read for it", _STYLE) + note)
        for record in records:
            file.write(f"<h2>{escape(record['prompt'])}</h2>\n")
            file.write(f'<p class="text"><b>{escape(record["prompt"])}</b>{escape(record["continuation"])}</p>\n')
            for chunk in record["chunks"]:
                file.write(f'<h3 class="text">{escape(chunk["text"])}</h3>\n')
                file.writelines(map(_read, chunk["neighbours"]))
        file.write(page_end())


def _read(found: Mapping[str, Any]) -> str:
    text, copied, rest = (escape(found[part]) for part in ("text", "copied", "rest"))
    return f'<p class="found"><b>{escape(found["title"])}</b><br>{text}<u><mark>{copied}</mark>{rest}</u></p>\n'


def _chunk(chunks: ChunkStore, neighbors: NeighborStore, row: int, gains: NDArray[np.float64]) -> Iterator[str]:
    document = int(chunks.document_of(np.array([row]))[0])
    title = chunks.title(document) or f"document {document}"
    yield f"<h2>{escape(title)} <small>chunk {row}, {gains.sum():+.2f} nats</small></h2>\n"
    is_first = row == int(chunks.documents[document])
    if not is_first:
        yield f'<p class="text">{escape(_text(chunks, row - 1))}</p>\n'
    tokens = _tokens(chunks, row)
    shown = np.zeros(len(tokens))
    shown[len(tokens) - len(gains) :] = gains  # the first token of a document is not predicted
    pieces = chunks.vocabulary.decode([[token] for token in tokens])
    yield f'<p class="text">{"".join(map(_token, pieces, shown.tolist()))}</p>\n'
    if not is_first:
        for found in neighbors.rows(np.array([row - 1]), min(NUM_SHOWN, neighbors.num_saved))[0].tolist():
            if found >= 0:
                yield _neighbour(neighbors.database, found)


def _token(piece: str, gain: float) -> str:
    share = round(min(abs(gain) / FULL_NATS, 1.0) * 60)
    colour = "good" if gain > 0 else "bad"
    style = f"background:color-mix(in srgb, var(--{colour}) {share}%, transparent)"
    return f'<span style="{style}" title="{gain:+.3f}">{escape(piece)}</span>'


def _neighbour(database: ChunkStore, row: int) -> str:
    document = int(database.document_of(np.array([row]))[0])
    behind = _text(database, row + 1) if row + 1 < int(database.documents[document + 1]) else ""
    title = escape(database.title(document) or f"document {document}")
    return f'<p class="found"><b>{title}</b><br>{escape(_text(database, row))}<u>{escape(behind)}</u></p>\n'


def _text(chunks: ChunkStore, row: int) -> str:
    return chunks.vocabulary.decode([_tokens(chunks, row)])[0]


def _tokens(chunks: ChunkStore, row: int) -> list[int]:
    ids, is_token = chunks.chunk_tokens(np.array(row))
    tokens: list[int] = ids[is_token].tolist()
    return tokens
