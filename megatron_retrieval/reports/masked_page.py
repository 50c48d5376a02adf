"""A page of masked sentences: what the retriever found for each, and what the reader made of it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from megatron_retrieval.reports.highlight import answer_spans
from megatron_retrieval.reports.html import marked, page_end, page_start
from megatron_retrieval.training.tasks.watching import WatchedPassage, WatchedSentence
from megatron_retrieval.utils.files import atomic_file

PAGE = "examples.html"

_NOTE = (
    "<p><small>prior: the retriever's weight of a passage; posterior: what the hidden span makes of it; "
    "utility: log-likelihood of the span with the passages over without any; marked: the span</small></p>\n"
)


def write_masked_page(path: Path, iteration: int, sentences: Sequence[WatchedSentence]) -> None:
    """Write one self-contained HTML file. All text is escaped.

    Args:
        iteration: steps taken so far.
    """
    title = f"Masked sentences after {iteration:,} steps"
    with atomic_file(path) as file:
        file.write(page_start(title) + _NOTE + "".join(map(_sentence, sentences)) + page_end())


def _sentence(sentence: WatchedSentence) -> str:
    facts = [f"hidden: <b>{escape(sentence.hidden)}</b> ({escape(sentence.type)})"]
    facts.append(f"answer: <b>{escape(sentence.prediction) or 'none'}</b> {'✓' if sentence.is_right else '✗'}")
    if sentence.utility is not None:
        facts.append(f"utility {sentence.utility:+.3f}")
    passages = "".join(_passage(found, sentence.hidden) for found in sentence.passages)
    return f"<h2>{escape(sentence.masked)}</h2>\n<p>{' · '.join(facts)}</p>\n<ol>\n{passages}</ol>\n"


def _passage(found: WatchedPassage, hidden: str) -> str:
    spans = answer_spans(found.passage.text, [hidden])
    text = marked(found.passage.text, [spans], [("<mark>", "</mark>")])
    return (
        f"<li><b>{escape(found.passage.title)}</b> <small>prior {found.prior:.3f} · posterior {found.posterior:.3f}"
        f"</small><br>{text}</li>\n"
    )
