"""A page of questions with the passages that were read: answers highlighted, right and wrong marked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from megatron_retrieval.evaluation.predictions import ReadQuestion
from megatron_retrieval.reports.highlight import Span, answer_spans, marked_pieces
from megatron_retrieval.utils.files import atomic_file

PAGE = "examples.html"

#: acceptable answers that stand beside the question; some files name a hundred
_SHOWN_ANSWERS = 5
_SEPARATOR = " · "

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.4rem; }
table { border-collapse: collapse; margin-bottom: 1.5rem; }
td { padding: .1rem 1.2rem .1rem 0; }
td + td { font-variant-numeric: tabular-nums; }
details { border-left: 4px solid #c33; background: #fafafa; margin: .6rem 0; padding: .4rem .8rem; }
details.right { border-color: #2a7; }
summary { cursor: pointer; overflow-wrap: anywhere; }
summary b { color: #c33; }
.right summary b { color: #2a7; }
article { margin: .8rem 0; padding-left: .7rem; border-left: 2px solid transparent; font-size: .92rem; }
article.telling { border-color: #999; }
h2 { font-size: .92rem; margin: 0; }
p { margin: 0; overflow-wrap: anywhere; }
small { color: #666; }
mark { background: #ffe98a; }
.predicted { outline: 2px solid #68c; border-radius: 2px; }
body:has(#wrong:checked) details.right, body:has(#right:checked) details:not(.right),
body:has(#telling:checked) article:not(.telling) { display: none; }
@media (prefers-color-scheme: dark) {
  body { background: #191919; color: #ddd; } details { background: #222; } small { color: #999; }
  mark { background: #6b5a00; color: inherit; }
}
"""

_CHOICE = """<p><label><input type="radio" name="shown" id="all" checked> all</label>
<label><input type="radio" name="shown" id="right"> right</label>
<label><input type="radio" name="shown" id="wrong"> wrong</label>;
<label><input type="checkbox" id="telling"> only passages with an answer</label><br>
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
    question = example.question
    is_right = example.score.exact_match == 1
    facts = [f"question {escape(question.id)}", f"score of the answer {example.prediction.score:.4g}"]
    if len(question.answers) > _SHOWN_ANSWERS:
        facts.append(f"acceptable: {_SEPARATOR.join(map(escape, question.answers))}")
    passages = "".join(_passage(example, place) for place in range(len(question.passages)))
    return (
        f'<details class="{"right" if is_right else "wrong"}"><summary><b>{"✓" if is_right else "✗"}</b> '
        f"{escape(question.text)}<br>{_answered(example)}</summary>\n<p><small>{_SEPARATOR.join(facts)}</small></p>\n"
        f"{passages or '<p>No passages were read.</p>'}</details>\n"
    )


def _answered(example: ReadQuestion) -> str:
    answers = example.question.answers
    acceptable = [escape(answer) for answer in answers[:_SHOWN_ANSWERS]] or ["<i>none given</i>"]
    if len(answers) > _SHOWN_ANSWERS:
        acceptable.append(f"{len(answers) - _SHOWN_ANSWERS} more")
    facts = [f"F1 {example.score.f1:.2f}", f"acceptable: {_SEPARATOR.join(acceptable)}"]
    answer = escape(example.prediction.text) or "<i>no answer</i>"
    return f"<strong>{answer}</strong> <small>{_SEPARATOR.join(facts)}</small>"


def _passage(example: ReadQuestion, place: int) -> str:
    question, prediction = example.question, example.prediction
    passage = question.passages[place]
    predicted = prediction.text if prediction.passage in (None, place) else ""
    layers = (answer_spans(passage.text, question.answers), answer_spans(passage.text, [predicted]))
    facts = [escape(passage.id), f"score {question.scores[place]:.4g}" if any(question.scores) else ""]
    facts.append("the answer was taken from here" if prediction.passage == place else "")
    return (
        f'<article class="{"telling" if any(layers) else "silent"}"><h2>{place + 1}. {escape(passage.title)} '
        f"<small>{_SEPARATOR.join(filter(None, facts))}</small></h2><p>{_marked(passage.text, *layers)}</p></article>\n"
    )


def _marked(text: str, answers: Sequence[Span], predicted: Sequence[Span]) -> str:
    """The text as HTML, acceptable answers marked and the predicted one framed."""
    parts = []
    for piece, (is_answer, is_predicted) in marked_pieces(text, answers, predicted):
        html = escape(piece)
        html = f'<span class="predicted">{html}</span>' if is_predicted else html
        parts.append(f"<mark>{html}</mark>" if is_answer else html)
    return "".join(parts)
