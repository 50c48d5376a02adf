"""Questions that one run answers and another does not, with what each found or said."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import islice
from pathlib import Path

from megatron_retrieval.data.files.passage_questions import PassagesToReadConfig, read_reader_questions
from megatron_retrieval.evaluation.predictions import PREDICTIONS
from megatron_retrieval.evaluation.retrieval_results import RANKS, RESULTS, read_ranks
from megatron_retrieval.reports.highlight import answer_spans
from megatron_retrieval.reports.html import marked
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.files import read_lines


@dataclass
class Outcome:
    """What a run made of a question.

    Attributes:
        value: the greater the better: 1 / rank of the first hit, or F1.
        says: "rank 3", "not found" or the answer.
        answers: acceptable ones, where the run's files name them.
        passage: the best that was found, where the run's files hold it.
    """

    value: float
    says: str
    answers: tuple[str, ...] = ()
    passage: Passage | None = None


@dataclass(frozen=True)
class Example:
    """A question with the outcomes of two runs."""

    question: str
    before: Outcome
    after: Outcome = field(compare=False)


def won_and_lost(baseline: Path, candidate: Path, num: int) -> tuple[list[Example], list[Example]]:
    """At most `num` questions on which the candidate gained most, and as many on which it lost most.

    The two runs are of the same questions.
    """
    is_reader = (baseline / PREDICTIONS).exists() and not (baseline / RANKS).exists()
    read = _predictions if is_reader else _ranks
    questions, before = read(baseline)
    _, after = read(candidate)
    gains = [new.value - old.value for old, new in zip(before, after, strict=True)]
    order = sorted(range(len(gains)), key=lambda number: -abs(gains[number]))  # stable: by question where equal
    chosen = [list(islice((n for n in order if gains[n] * sign > 0), num)) for sign in (1, -1)]
    if not is_reader:
        for run, outcomes in ((baseline, before), (candidate, after)):
            _add_passages(run, outcomes, {number for numbers in chosen for number in numbers})
    won, lost = ([Example(questions[n], before[n], after[n]) for n in numbers] for numbers in chosen)
    return won, lost


def example_articles(won: Sequence[Example], lost: Sequence[Example]) -> Iterator[str]:
    """The questions as parts of a page, folded."""
    for title, examples, side in (("won", won, "better"), ("lost", lost, "worse")):
        if examples:
            articles = "".join(_example(example, side) for example in examples)
            yield f"<details><summary>Questions {title}: {len(examples)} examples</summary>\n{articles}</details>\n"


def _ranks(run: Path) -> tuple[list[str], list[Outcome]]:
    """By answers where they are known, else by gold passages."""
    questions, ranks, _ = read_ranks(run / RANKS)
    own = ranks.answer if len(ranks.known_answer) else ranks.gold
    outcomes = [Outcome(1 / rank, f"rank {rank}") if rank > 0 else Outcome(0.0, "not found") for rank in own.tolist()]
    return [question.partition("\t")[2] for question in questions], outcomes


def _predictions(run: Path) -> tuple[list[str], list[Outcome]]:
    records = [json.loads(line) for line in read_lines(run / PREDICTIONS)]
    outcomes = [Outcome(one["f1"], one["prediction"] or "no answer", tuple(one["answers"])) for one in records]
    return [one["question"] for one in records], outcomes


def _add_passages(run: Path, outcomes: Sequence[Outcome], wanted: Collection[int]) -> None:
    """The best passage and the answers of some questions, where the run has written its results."""
    path = run / RESULTS
    if not wanted or not path.exists():
        return
    found: Iterator[tuple[int, Outcome]] = zip(range(max(wanted) + 1), outcomes, strict=False)
    for (number, outcome), question in zip(
        found, read_reader_questions(path, PassagesToReadConfig(num_passages=1)), strict=False
    ):
        if number in wanted:
            outcome.answers = question.answers
            outcome.passage = question.passages[0] if question.passages else None


def _example(example: Example, side: str) -> str:
    answers = example.after.answers or example.before.answers
    known = f"<p><small>answer: {' · '.join(map(escape, answers[:5]))}</small></p>" if answers else ""
    change = f'{escape(example.before.says)} → <b class="{side}">{escape(example.after.says)}</b>'
    found = "".join(
        _passage(name, one, answers) for name, one in (("before", example.before), ("after", example.after))
    )
    return f"<article><h3>{escape(example.question)}</h3><p>{change}</p>{known}{found}</article>\n"


def _passage(name: str, outcome: Outcome, answers: Sequence[str]) -> str:
    if outcome.passage is None:
        return ""
    text = marked(outcome.passage.text, [answer_spans(outcome.passage.text, answers)], [("<mark>", "</mark>")])
    return f"<p><small>first {name}: {escape(outcome.passage.title)}</small><br><q>{text}</q></p>"
