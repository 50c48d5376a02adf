"""An objective is one row, which may come from outside of the package; the documentation has those of the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from end_to_end_runs import TRAIN, train, write_starts
from jobs import ROOT
from programs import command, losses, run, succeed

from megatron_retrieval.training.steps.end_to_end_objectives import OBJECTIVES

EXTENSION = ("--extensions", Path(__file__).parent / "extensions" / "mine_objective.py")
STEPS = 3


def test_an_objective_from_outside_trains_on_any_number_of_ranks(tmp_path: Path) -> None:
    folder = write_starts(tmp_path)
    words = (*EXTENSION, "--objective", "mine")
    succeed(train(folder, "extractive", "one", STEPS, *words))
    succeed(train(folder, "extractive", "two", STEPS, *words, num_processes=2))
    succeed(train(folder, "extractive", "plain", STEPS, "--objective", "individual-topk"))
    one, two, plain = (dict(losses(folder / name)) for name in ("one", "two", "plain"))
    assert len(one) == STEPS
    assert one == pytest.approx(two, rel=1e-4)
    assert one != pytest.approx(plain, rel=1e-4)
    assert "mine_objective.py" in (folder / "one" / "config.yaml").read_text()


def test_help_lists_it() -> None:
    with_it = run(command(*TRAIN, *EXTENSION, "--help"))
    assert with_it.returncode == 0
    assert re.search(r"mine: reader: each passage for itself", with_it.stdout)
    assert "individual-topk: reader:" in with_it.stdout


def test_the_documentation_has_the_rows_of_the_package() -> None:
    text = (ROOT / "docs" / "end_to_end.md").read_text(encoding="utf-8")
    table = text[text.index("| `--objective` |") :].split("\n\n")[0].splitlines()[2:]
    cells = [re.split(r"(?<!\\)\|", line) for line in table]
    written = {name.strip(" `"): (reader.strip(), retriever.strip()) for _, name, reader, retriever, _ in cells}
    rows = [row for row in OBJECTIVES.values() if row.loss.__module__.startswith("megatron_retrieval.")]
    assert list(written) == [row.name for row in rows]
    for row in rows:
        reader, retriever = (cell.replace("\\|", "|").replace("`", "") for cell in written[row.name])
        assert row.about == f"reader: {reader}; retriever: {retriever}"
