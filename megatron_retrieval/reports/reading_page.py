"""A page of questions with the passages that were read: answers highlighted, right and wrong marked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from megatron_retrieval.evaluation.predictions import ReadQuestion
from megatron_retrieval.reports.highlight import answer_spans
from megatron_retrieval.reports.html import facts_table, marked, page_end, page_start
from megatron_retrieval.utils.files import atomic_file

PAGE = "examples.html"

#: acceptable answers that stand beside the question; some files name a hundred
_SHOWN_ANSWERS = 5
_SEPARATOR = " · "
#: the predicted answer and the acceptable ones
_TAGS = (('<span class="predicted">', "</span>"), ("<mark>", "</mark>"))

_STYLE = """
details { border-left: 4px solid var(--bad); background: var(--card); margin: .6rem 0; padding: .5rem .9rem; }
details.right { border-color: var(--good); }
summary { cursor: pointer; overflow-wrap: anywhere; }
summary b { color: var(--bad); }
.right summary b { color: var(--good); }
article { margin: .8rem 0; padding-left: .7rem; border-left: 2px solid transparent; font-size: .92rem; }
article.telling { border-color: var(--soft); }
article h2 { font-size: .92rem; margin: 0; }
article p { margin: 0; font-family: var(--serif); }
table { margin-bottom: 1.5rem; }
.predicted { outline: 2px solid var(--accent); border-radius: 2px; }
body:has(#wrong:checked) details.right, body:has(#right:checked) details:not(.right),
body:has(#telling:checked) article:not(.telling) { display: none; }
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
    with atomic_file(path) as file:
        file.write(f"{page_start(title, _STYLE)}{facts_table(facts or {})}{_CHOICE}")
        for example in examples:
            file.write(_example(example))
        file.write(page_end())


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
    layers = (answer_spans(passage.text, [predicted]), answer_spans(passage.text, question.answers))
    facts = [escape(passage.id), f"score {question.scores[place]:.4g}" if any(question.scores) else ""]
    facts.append("the answer was taken from here" if prediction.passage == place else "")
    text = marked(passage.text, layers, _TAGS)
    return (
        f'<article class="{"telling" if any(layers) else "silent"}"><h2>{place + 1}. {escape(passage.title)} '
        f"<small>{_SEPARATOR.join(filter(None, facts))}</small></h2><p>{text}</p></article>\n"
    )
