"""The losses of 50 steps from random weights are those on record, in one process; at TP 2 and DP 2 the first of them.

`python tests/golden/test_golden_losses.py` records them anew, from one process; do so where a change of them is meant,
and say in the commit why they change.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from golden_inputs import Inputs, Source

from megatron_retrieval.testing import runs

RECORDS = Path(__file__).parent / "losses"
LAYOUTS = {"one process": (1, 1), "TP 2": (2, 2), "DP 2": (2, 1)}
NUM_STEPS = 50
#: the index of training end to end is made anew after 4
STEPS_ON_TWO_RANKS = 6
TOLERANCE = 1e-4


class Job(NamedTuple):
    """What is trained, and the attribute of `Inputs` that it is given."""

    recipe: runs.Recipe
    source: str


JOBS = {
    "pretrain_bert": Job(runs.BERT, "wordpiece_corpus"),
    "pretrain_ict": Job(runs.ICT, "wordpiece_corpus"),
    "pretrain_t5": Job(runs.T5, "sentencepiece_corpus"),
    "pretrain_retro": Job(runs.RETRO, "chunks_with_neighbors"),
    "extractive-finetune": Job(runs.READER, "questions_for_bert"),
    "fusion-finetune": Job(runs.FUSION, "questions_for_t5"),
    "causal-finetune": Job(runs.CAUSAL, "questions_for_causal_lm"),
    "end-to-end-finetune": Job(runs.END_TO_END, "asked_questions"),
}


def num_steps(layout: str) -> int:
    return NUM_STEPS if layout == "one process" else STEPS_ON_TWO_RANKS


def losses(name: str, flags: list[str], source: Source, output: Path, layout: str = "one process") -> list[float]:
    words = [*flags, *source.flags, "--output-dir", str(output)]
    runs.train(JOBS[name].recipe, words, *LAYOUTS[layout], num_steps=num_steps(layout))
    return runs.curve(output)


def first_difference(expected: list[float], actual: list[float]) -> str | None:
    """A sentence about the first step whose loss differs; None where all agree."""
    for step, (old, new) in enumerate(zip(expected, actual, strict=True), 1):
        if not math.isclose(old, new, rel_tol=TOLERANCE):
            return f"step {step} is the first that differs: {new:.6f}, on record {old:.6f} ({new / old - 1:+.1e})"
    return None


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return Inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", JOBS)
def test_losses_are_those_on_record(inputs: Inputs, tmp_path: Path, name: str, layout: str) -> None:
    record = json.loads((RECORDS / f"{name}.json").read_text())
    source: Source = getattr(inputs, JOBS[name].source)
    assert source.fingerprint == record["data"], "what is learned from has changed, and the losses with it"
    actual = losses(name, record["flags"].split(), source, tmp_path / "run", layout)
    difference = first_difference(record["losses"][: num_steps(layout)], actual)
    assert difference is None, f"{name}, {layout}: {difference}"


@pytest.mark.parametrize("name", JOBS)
def test_the_record_is_of_training(name: str) -> None:
    """Fifty losses, which fall."""
    recorded = json.loads((RECORDS / f"{name}.json").read_text())["losses"]
    assert len(recorded) == NUM_STEPS
    assert sum(recorded[-5:]) < 0.7 * sum(recorded[:5])


def test_the_first_difference_is_named() -> None:
    assert first_difference([2.0, 1.0, 0.5], [2.0001, 1.0, 0.5]) is None
    message = first_difference([2.0, 1.0, 0.5], [2.0, 1.001, 0.9])
    assert message == "step 2 is the first that differs: 1.001000, on record 1.000000 (+1.0e-03)"


def record_anew(names: list[str]) -> None:
    """Losses of one process with the flags on record."""
    with TemporaryDirectory() as folder:
        inputs = Inputs(Path(folder))
        for name in names or JOBS:
            path = RECORDS / f"{name}.json"
            flags = json.loads(path.read_text())["flags"]
            source: Source = getattr(inputs, JOBS[name].source)
            values = losses(name, flags.split(), source, Path(folder) / "runs" / name)
            record = {"flags": flags, "data": source.fingerprint, "losses": values}
            path.write_text(json.dumps(record, indent=1) + "\n")
            sys.stdout.write(f"{path}: {values[0]:.3f} to {values[-1]:.3f}\n")


if __name__ == "__main__":
    record_anew(sys.argv[1:])
