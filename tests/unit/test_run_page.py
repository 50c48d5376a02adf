"""The report of runs: what they measured, compared in pairs, on one page without network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import browser

from megatron_retrieval.applications.report import ReportConfig, report
from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.evaluation.exact_match import AnswerScore
from megatron_retrieval.evaluation.judged_metrics import judged_metrics
from megatron_retrieval.evaluation.paired_runs import ANSWER, compare_runs
from megatron_retrieval.evaluation.predictions import PREDICTIONS, Prediction, ReadQuestion, write_predictions
from megatron_retrieval.evaluation.rank_metrics import RetrievalRanks
from megatron_retrieval.evaluation.retrieval_results import (
    METRICS,
    RANKS,
    RESULTS,
    Retrieved,
    retrieval_metrics,
    write_dpr_results,
    write_ranks,
)
from megatron_retrieval.reports.run_files import open_runs
from megatron_retrieval.reports.won_and_lost import won_and_lost
from megatron_retrieval.types.questions import Passage, Question
from megatron_retrieval.utils.files import write_json

EVIL = "<script>document.title = 'bad'</script>"
QUESTIONS = [Question(str(n), f"question {n} {EVIL}", ("Paris",)) for n in range(6)]


class OnePassage:
    """Evidence of one text."""

    def passages(self, rows: Any) -> list[Passage]:
        return [Passage(f"p{row}", EVIL, f"Paris is passage {row} {EVIL}") for row in rows]


def evaluation(folder: Path, ranks: list[int]) -> Path:
    """The output folder of a retriever's evaluation with these ranks of the first answer."""
    answer, questions = np.array(ranks), QUESTIONS[: len(ranks)]
    found = RetrievalRanks(answer, np.full(len(ranks), -1))
    write_json(folder / METRICS, retrieval_metrics(found, [1, 5]))
    write_ranks(folder / RANKS, questions, found)
    rows = np.arange(len(ranks))[:, None]
    retrieved = Retrieved(rows, np.ones(rows.shape, np.float32), rows >= 0, found)
    write_dpr_results(folder / RESULTS, questions, retrieved, OnePassage())
    return folder


def training(folder: Path, lr: float) -> Path:
    """The output folder of a training run that was killed while it wrote a line."""
    record = {
        "command": f"python train.py --title '{EVIL}'",
        "config": {"lr": lr, "seed": 1, "train-data": ["a", EVIL]},
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 7200.0,
        "world_size": 4,
        "hardware": {"gpus": ["H200"], "cpu": "x", "cores": 8, "memory_bytes": 2**34, "cpu_capability": "AVX2"},
        "git": None,
    }
    write_json(folder / "run_record.json", record)
    lines = [{"iteration": n, "loss": 1 / n, "lr": lr / n, "constant": 1.0, "valid_f1": None} for n in range(1, 1001)]
    lines += [{"iteration": 1000, "index_staleness_steps": 3.0}, {"iteration": 1001, "index_staleness_steps": 0.0}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"iteration": 1002, "lo')
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("matplotlib", reason="matplotlib (the extra report) is not installed")
    folder = tmp_path_factory.mktemp("runs")
    runs = (
        evaluation(folder / "a" / "test", [1, 2, 0, 1, 3, 0]),
        evaluation(folder / "b" / "test", [1, 1, 1, 0, 3, 0]),
        evaluation(folder / "other", [1]),
        training(folder / "one", 0.5),
        training(folder / "two", 0.25),
    )
    report(ReportConfig(runs=runs, output=folder / "page.html", price_per_hour=2.5))
    return folder / "page.html"


def test_nothing_of_the_runs_becomes_markup_and_nothing_is_loaded(page: Path) -> None:
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert not re.search('(src|href)="(?!#|data:)', html)
    assert "@import" not in html
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)


def test_figures_stand_on_the_page(page: Path) -> None:
    text = re.sub(r"<[^>]+>", "|", page.read_text(encoding="utf-8"))
    assert re.search(r"recall@1\|+33\.3\|+50\.0\|+\+16\.7\|+", text)  # two hits of six before, three after
    assert "evaluations of different questions" in text
    assert re.search(r"took\|+–\|+–\|+–\|+2:00:00\|+2:00:00", text)
    assert re.search(r"cost\|+–\|+–\|+–\|+20\.00\|+20\.00", text)  # four devices for two hours
    assert re.search(r"Settings that differ\|.*?lr\|+–\|+–\|+–\|+0\.5\|+0\.25", text, re.DOTALL)
    titles = re.findall("<figcaption>([^<]+)", page.read_text(encoding="utf-8"))
    assert titles == ["recall", "Paired differences with 95 % intervals", "loss", "index staleness steps", "lr"]


def test_runs_are_compared_question_by_question(tmp_path: Path) -> None:
    before, after = (evaluation(tmp_path / name, ranks) for name, ranks in (("x", [1, 2, 0, 1]), ("y", [1, 1, 5, 0])))
    won, lost = won_and_lost(before, after, 1)
    assert [(one.question[:10], one.before.says, one.after.says) for one in won] == [("question 1", "rank 2", "rank 1")]
    assert [(one.question[:10], one.before.says, one.after.says) for one in lost] == [
        ("question 3", "rank 1", "not found")
    ]
    assert lost[0].after.passage is not None
    assert (lost[0].after.passage.id, lost[0].after.answers) == ("p3", ("Paris",))


def test_recall_by_judgements_is_not_compared_with_recall_by_answers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib (the extra report) is not installed")
    answered, judged = (evaluation(tmp_path / name, [1, 0]) for name in ("answered", "judged"))
    ranks, values = RetrievalRanks(np.array([1, 0]), np.array([-1, -1])), {"recall@1": np.array([0.25, 0.25])}
    write_ranks(judged / RANKS, QUESTIONS[:2], ranks, values)
    write_json(judged / METRICS, retrieval_metrics(ranks, [1], ANSWER) | judged_metrics(values | {"map": np.ones(2)}))
    for first, second in ((answered, judged), (judged, answered)):
        comparison = compare_runs(first, second, [1])
        assert "recall@1" not in comparison
        assert comparison["answer_recall@1"]["difference"] == 0
    assert compare_runs(judged, judged, [1])["recall@1"]["baseline"] == 0.25
    report(ReportConfig(runs=(answered, judged), output=tmp_path / "page.html"))
    text = re.sub(r"<[^>]+>", "|", (tmp_path / "page.html").read_text(encoding="utf-8"))
    assert re.search(r"\|recall@1\|+–\|+25\.0 ", text)
    assert re.search(r"\|answer recall@1\|+50\.0 [^|]*\|+50\.0 ", text)


def test_readers_are_compared_too(tmp_path: Path) -> None:
    for name, scores in (("x", (0.0, 1.0, 0.5)), ("y", (1.0, 1.0, 0.0))):
        read = [
            ReadQuestion(ReaderQuestion(str(n), f"q{n}", ("a",)), Prediction(name), AnswerScore(float(f1 == 1), f1))
            for n, f1 in enumerate(scores)
        ]
        (tmp_path / name).mkdir()
        write_predictions(tmp_path / name / PREDICTIONS, read)
    comparison = compare_runs(tmp_path / "x", tmp_path / "y", [1])
    assert comparison["exact_match"]["difference"] == pytest.approx(1 / 3)
    assert comparison["f1"]["difference"] == pytest.approx(1 / 6)
    won, lost = won_and_lost(tmp_path / "x", tmp_path / "y", 5)
    assert ([one.question for one in won], [one.question for one in lost]) == (["q0"], ["q2"])
    assert (won[0].before.says, won[0].after.says, won[0].after.answers) == ("x", "y", ("a",))


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="output-dir"):
        open_runs([tmp_path])
    with pytest.raises(ConfigError, match="at least one"):
        report(ReportConfig(runs=()))
    training(tmp_path / "run", 1.0)
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_text("broken\n" + path.read_text())
    with pytest.raises(DataError, match=r"metrics\.jsonl:1"):
        open_runs([tmp_path / "run"])


def test_a_browser_shows_it_in_light_and_dark_wide_and_narrow(page: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as shown:
        colors = []
        for width, dark in ((1100, False), (390, True)):
            shown.look(width=width, dark=dark)
            shown.open(page.as_uri())
            assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
            plots = "[...document.querySelectorAll('svg')].every((one) => one.getBoundingClientRect().width > 150)"
            assert shown.evaluate(plots)
            line = "document.querySelector('figure path[style*=\"--run0\"]')"
            colors.append(shown.evaluate(f"getComputedStyle({line}).stroke"))
        assert colors[0] != colors[1]
        assert shown.evaluate("document.title") == "Report of 5 runs"
        assert not shown.faults
        assert {address.partition(":")[0] for address in shown.asked} <= {"file", "data"}
