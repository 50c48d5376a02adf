"""The losses of 50 steps from random weights are those on record, in one process, at TP 2 and at DP 2.

`python tests/golden/test_golden_losses.py` records them anew, from one process; do so where a change of them is meant,
and say in the commit why they change.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from megatron_retrieval.data.corpus import CorpusStore
from megatron_retrieval.data.corpus_builder import CorpusBuilderConfig, build_corpus
from megatron_retrieval.testing import runs
from megatron_retrieval.testing.encyclopedia.build import build_encyclopedia
from megatron_retrieval.testing.encyclopedia.output import vocabulary, write_passages

RECORDS = Path(__file__).parent / "losses"
RECIPES = {"pretrain_bert": runs.BERT, "pretrain_ict": runs.ICT}
LAYOUTS = {"one process": (1, 1), "TP 2": (2, 2), "DP 2": (2, 1)}
TOLERANCE = 1e-4
NUM_PASSAGES = 200


def write_corpus(folder: Path) -> Path:
    """The first articles of the mini encyclopedia: documents of one to three passages."""
    encyclopedia = build_encyclopedia()
    write_passages(folder / "passages.tsv", encyclopedia.passages[:NUM_PASSAGES])
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary(encyclopedia)))
    source, vocab = str(folder / "passages.tsv"), str(folder / "vocab.txt")
    build_corpus(CorpusBuilderConfig(input=(source,), output=str(folder / "corpus"), vocab_file=vocab))
    return folder / "corpus"


def losses(name: str, flags: list[str], corpus: Path, output: Path, layout: str = "one process") -> list[float]:
    words = [*flags, "--data-path", str(corpus), "--output-dir", str(output)]
    runs.train(RECIPES[name], words, *LAYOUTS[layout])
    return runs.curve(output)


def first_difference(expected: list[float], actual: list[float]) -> str | None:
    """A sentence about the first step whose loss differs; None where all agree."""
    for step, (old, new) in enumerate(zip(expected, actual, strict=True), 1):
        if not math.isclose(old, new, rel_tol=TOLERANCE):
            return f"step {step} is the first that differs: {new:.6f}, on record {old:.6f} ({new / old - 1:+.1e})"
    return None


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", RECIPES)
def test_losses_are_those_on_record(corpus: Path, tmp_path: Path, name: str, layout: str) -> None:
    record = json.loads((RECORDS / f"{name}.json").read_text())
    assert CorpusStore(corpus).fingerprint == record["corpus"], "the corpus has changed, and the losses with it"
    actual = losses(name, record["flags"].split(), corpus, tmp_path / "run", layout)
    difference = first_difference(record["losses"], actual)
    assert difference is None, f"{name}, {layout}: {difference}"


@pytest.mark.parametrize("name", RECIPES)
def test_the_record_is_of_training(name: str) -> None:
    """Fifty losses, which fall."""
    recorded = json.loads((RECORDS / f"{name}.json").read_text())["losses"]
    assert len(recorded) == 50
    assert sum(recorded[-5:]) < 0.7 * sum(recorded[:5])


def test_the_first_difference_is_named() -> None:
    assert first_difference([2.0, 1.0, 0.5], [2.0001, 1.0, 0.5]) is None
    message = first_difference([2.0, 1.0, 0.5], [2.0, 1.001, 0.9])
    assert message == "step 2 is the first that differs: 1.001000, on record 1.000000 (+1.0e-03)"


def record_anew() -> None:
    """Losses of one process with the flags on record."""
    with TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder))
        for name in RECIPES:
            path = RECORDS / f"{name}.json"
            flags = json.loads(path.read_text())["flags"]
            values = losses(name, flags.split(), corpus, Path(folder) / name)
            record = {"flags": flags, "corpus": CorpusStore(corpus).fingerprint, "losses": values}
            path.write_text(json.dumps(record, indent=1) + "\n")
            sys.stdout.write(f"{path}: {values[0]:.3f} to {values[-1]:.3f}\n")


if __name__ == "__main__":
    record_anew()
