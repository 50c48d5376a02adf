"""Make a folder of mixed documents (PDF, Word, HTML, Markdown, text, CSV, JSON lines) out of a table of passages, to
measure what `megatron-retrieval learn` takes and finds. The texts are the table's; nothing is invented."""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.utils.files import atomic_directory

#: articles in a table or a file of JSON lines
_ARTICLES_IN_ROWS = 10
_PARAGRAPHS_ON_PAGE = 3


@dataclass(frozen=True, kw_only=True)
class MixedDocumentsConfig(Checked):
    """Write documents of seven kinds, one article each, in tables and JSON lines ten."""

    input: Path
    """Passages (psgs_w100.tsv); consecutive ones of one title are an article. The longest are taken."""
    output: Path
    """Folder to create."""
    documents: PositiveInt = 300
    """Files to write."""


@dataclass(frozen=True)
class _Article:
    title: str
    paragraphs: tuple[str, ...]


def _write_pdf(path: Path, articles: list[_Article]) -> None:
    from reportlab.lib.styles import getSampleStyleSheet  # type: ignore[import-untyped]
    from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate  # type: ignore[import-untyped]

    styles = getSampleStyleSheet()
    (article,) = articles
    story = [Paragraph(html.escape(article.title), styles["Title"])]
    for number, text in enumerate(article.paragraphs):
        if number and not number % _PARAGRAPHS_ON_PAGE:
            story.append(PageBreak())
        story.append(Paragraph(html.escape(text), styles["BodyText"]))
    SimpleDocTemplate(str(path), title=article.title).build(story)


def _write_word(path: Path, articles: list[_Article]) -> None:
    import docx

    (article,) = articles
    document = docx.Document()
    document.core_properties.title = article.title
    document.add_heading(article.title, 0)
    for text in article.paragraphs:
        document.add_paragraph(text)
    document.save(str(path))


def _write_html(path: Path, articles: list[_Article]) -> None:
    (only,) = articles
    title, body = html.escape(only.title), "".join(f"<p>{html.escape(text)}</p>\n" for text in only.paragraphs)
    menu = '<nav><a href="/">Home</a> <a href="/all">All articles</a></nav>'
    head, article = f"<head><title>{title}</title></head>", f"<article><h1>{title}</h1>\n{body}</article>"
    path.write_text(f"<html>{head}<body>{menu}{article}</body></html>", encoding="utf-8")


def _write_markdown(path: Path, articles: list[_Article]) -> None:
    (article,) = articles
    path.write_text(f"# {article.title}\n\n" + "\n\n".join(article.paragraphs) + "\n", encoding="utf-8")


def _write_text(path: Path, articles: list[_Article]) -> None:
    path.write_text("\n\n".join(text for article in articles for text in article.paragraphs) + "\n", encoding="utf-8")


def _write_csv(path: Path, articles: list[_Article]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("title", "text"))
        table.writerows((article.title, " ".join(article.paragraphs)) for article in articles)


def _write_json(path: Path, articles: list[_Article]) -> None:
    lines = (json.dumps({"title": article.title, "text": "\n".join(article.paragraphs)}) for article in articles)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


_WRITERS: dict[str, Callable[[Path, list[_Article]], None]] = {
    ".pdf": _write_pdf,
    ".docx": _write_word,
    ".html": _write_html,
    ".md": _write_markdown,
    ".txt": _write_text,
    ".csv": _write_csv,
    ".jsonl": _write_json,
}


def make_documents(config: MixedDocumentsConfig) -> None:
    """Write the folder, which appears when it is complete.

    Raises:
        DataError: the input is malformed, or the output exists.
    """
    passages = (passage for _, passage in read_passages(config.input))
    of_title = groupby(passages, lambda passage: passage.title)
    articles = [_Article(title, tuple(passage.text for passage in group)) for title, group in of_title]
    longest = iter(sorted(articles, key=lambda article: -len(article.paragraphs)))  # equal ones stay in their order
    endings = list(_WRITERS)
    with atomic_directory(config.output) as folder:
        for number in range(config.documents):
            ending = endings[number % len(endings)]
            chosen = list(islice(longest, _ARTICLES_IN_ROWS if ending in (".csv", ".jsonl") else 1))
            name = re.sub(r"\W+", "_", chosen[0].title)[:60].strip("_")
            place = folder / f"part {number % 5}" / f"{number:03d}_{name}{ending}"
            place.parent.mkdir(exist_ok=True)
            _WRITERS[ending](place, chosen)


if __name__ == "__main__":
    run_program(MixedDocumentsConfig, make_documents)
