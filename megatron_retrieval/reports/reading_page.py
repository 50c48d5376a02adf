"""A page of questions with the passages that were read: answers highlighted, right and wrong marked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from megatron_retrieval.evaluation.reading_results import ReadQuestion
from megatron_retrieval.reports.highlight import answer_spans, marked_pieces
from megatron_retrieval.types import Passage
from megatron_retrieval.utils.files import atomic_file

PAGE = "examples.html"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.4rem; }
table { border-collapse: collapse; margin-bottom: 1.5rem; }
td { padding: .1rem 1.2rem .1rem 0; }
td + td { font-variant-numeric: tabular-nums; }
details { border-left: 4px solid #c33; background: #fafafa; margin: .6rem 0; padding: .4rem .8rem; }
details.right { border-color: #2a7; }
summary { cursor: pointer; }
summary b { color: #c33; }
.right summary b { color: #2a7; }
article { margin: .8rem 0; font-size: .92rem; }
h2 { font-size: .92rem; margin: 0; }
p { margin: 0; }
small { color: #666; }
mark { background: #ffe98a; }
.predicted { outline: 2px solid #68c; border-radius: 2px; }
body:has(#wrong:checked) details.right, body:has(#right:checked) details:not(.right) { display: none; }
@media (prefers-color-scheme: dark) {
  body { background: #191919; color: #ddd; } details { background: #222; } small { color: #999; }
  mark { background: #6b5a00; color: inherit; }
}
"""

_CHOICE = """<p><label><input type="radio" name="shown" id="all" checked> all</label>
<label><input type="radio" name="shown" id="right"> right</label>
<label><input type="radio" name="shown" id="wrong"> wrong</label>
<small>yellow: an acceptable answer; framed: what was answered</small></p>
"""


def write_reading_page(
    path: Path, examples: Iterable[ReadQuestion], *, title: str, facts: Mapping[str, object] | None = None
) -> None:
    """Write one self-contained HTML file. All text of questions and passages is escaped.

    Args:
        examples: what the page shows, in their order.
        facts: named values at the top of the page, such as metrics.
    """
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>\n" for k, v in (facts or {}).items())
    with atomic_file(path) as file:
        file.write(
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
            '<meta name="viewport" content="width=device-width">\n'
            f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n<table>\n{rows}</table>\n{_CHOICE}"
        )
        for example in examples:
            file.write(_example(example))
        file.write("</body>\n</html>\n")


def _example(example: ReadQuestion) -> str:
    question, prediction = example.question, example.prediction
    is_right = example.score.exact_match == 1
    answers = " · ".join(map(escape, question.answers)) or "<i>none given</i>"
    passages = "".join(
        _passage(
            passage,
            score,
            question.answers,
            prediction.text if prediction.passage in (None, place) else "",
            is_source=prediction.passage == place,
        )
        for place, (passage, score) in enumerate(zip(question.passages, question.scores, strict=True))
    )
    return (
        f'<details class="{"right" if is_right else "wrong"}"><summary><b>{"✓" if is_right else "✗"}</b> '
        f"{escape(question.text)}<br>{escape(prediction.text) or '<i>no answer</i>'} "
        f"<small>F1 {example.score.f1:.2f} · acceptable: {answers}</small></summary>\n{passages}</details>\n"
    )


def _passage(passage: Passage, score: float, answers: Sequence[str], predicted: str, *, is_source: bool) -> str:
    source = " · the answer was taken from here" if is_source else ""
    return (
        f"<article><h2>{escape(passage.title)} <small>{escape(passage.id)} · {score:.4g}{source}</small></h2>"
        f"<p>{_marked(passage.text, answers, predicted)}</p></article>\n"
    )


def _marked(text: str, answers: Sequence[str], predicted: str) -> str:
    """The text as HTML, acceptable answers marked and the predicted one framed."""
    parts = []
    for piece, (is_answer, is_predicted) in marked_pieces(
        text, answer_spans(text, answers), answer_spans(text, [predicted])
    ):
        html = escape(piece)
        html = f'<span class="predicted">{html}</span>' if is_predicted else html
        parts.append(f"<mark>{html}</mark>" if is_answer else html)
    return "".join(parts)
