"""Pages of HTML in one file each: no script, no network, one look in light and dark; see `style.css`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files

from megatron_retrieval.reports.highlight import Span, marked_pieces


@cache
def base_style() -> str:
    """The style sheet that all pages share."""
    return (files(__package__ or "") / "style.css").read_text(encoding="utf-8")


def page_start(title: str, style: str = "") -> str:
    """From the first line to the heading.

    Args:
        title: text, not markup.
        style: rules beside those of `base_style`.
    """
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>\n{base_style()}{style}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
    )


def page_end() -> str:
    """What closes `page_start`."""
    return "</body>\n</html>\n"


def facts_table(facts: Mapping[str, object]) -> str:
    """Named values, one a line."""
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>\n" for k, v in facts.items())
    return f"<table>\n{rows}</table>\n" if rows else ""


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "", figures: bool = True) -> str:
    """A table whose first column names what its row is about.

    Args:
        header: text of each column.
        rows: text of each cell.
        caption: what the table shows.
        figures: the other columns hold numbers, flush right; else text, which is broken into lines.
    """
    kind = ' class="number"' if figures else ""
    titles = "".join(f'<th scope="col"{kind if n else ""}>{escape(name)}</th>' for n, name in enumerate(header))
    cells = ("".join(f"<td{kind if n else ''}>{escape(cell)}</td>" for n, cell in enumerate(row)) for row in rows)
    lines = "".join(f"<tr>{row}</tr>\n" for row in cells)
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    table = f"<table>{named}<thead><tr>{titles}</tr></thead>\n<tbody>\n{lines}</tbody></table>"
    return f'<div class="wide" tabindex="0">{table}</div>\n'


def marked(text: str, layers: Sequence[Sequence[Span]], tags: Sequence[tuple[str, str]]) -> str:
    """`text` as HTML, the spans of each layer between its opening and closing tag; a later layer is the outer one."""
    parts = []
    for piece, inside in marked_pieces(text, *layers):
        html = escape(piece)
        for (start, stop), is_inside in zip(tags, inside, strict=True):
            html = f"{start}{html}{stop}" if is_inside else html
        parts.append(html)
    return "".join(parts)
