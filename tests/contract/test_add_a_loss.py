"""A contrastive loss is one row, which may come from outside of the package."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import command, losses, run, succeed

from megatron_retrieval.testing.tiny import write_tiny_corpus, write_tiny_dpr

FINETUNE = ("tasks/main.py", "--task", "retriever-finetune")
ICT = ("pretrain_ict.py", "--valid-fraction", "0")
EXTENSION = ("--extensions", Path(__file__).parent / "extensions" / "mine_loss.py")
STEPS = 3
TINY = (
    "--num-layers 1 --hidden-size 16 --num-attention-heads 2 --max-position-embeddings 32 --retriever-seq-length 32 "
    "--query-seq-length 16 --no-tensorboard --log-interval 1 --global-batch-size 8 --lr 1e-3 --hidden-dropout 0 "
    f"--attention-dropout 0 --init-method-std 0.5 --no-retriever-score-scaling --train-iters {STEPS}"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loss")


@pytest.fixture(scope="module")
def jobs(folder: Path) -> dict[str, tuple[object, ...]]:
    """The words of both trainings, but for the loss and the output."""
    data, vocab = write_tiny_dpr(folder)
    corpus = write_tiny_corpus(folder)
    return {
        "DPR": (*FINETUNE, *TINY, "--train-data", data, "--vocab-file", vocab),
        "ICT": (*ICT, *TINY, "--data-path", corpus),
    }


@pytest.mark.parametrize("name", ["DPR", "ICT"])
def test_a_loss_from_outside_trains_on_any_number_of_ranks(
    folder: Path, jobs: dict[str, tuple[object, ...]], name: str
) -> None:
    def train(output: str, *words: object, num_processes: int = 1) -> dict[int, float]:
        succeed(command(*jobs[name], "--output-dir", folder / name / output, *words, num_processes=num_processes))
        return dict(losses(folder / name / output))

    mine = (*EXTENSION, "--contrastive-loss", "mine")
    one, two = train("one", *mine), train("two", *mine, num_processes=2)
    assert len(one) == STEPS
    assert one == pytest.approx(two, rel=1e-4)
    assert one != pytest.approx(train("plain"), rel=1e-4)
    assert "contrastive-loss: mine" in (folder / name / "one" / "config.yaml").read_text()


def test_help_lists_it() -> None:
    with_it = run(command(*FINETUNE, *EXTENSION, "--help"))
    assert with_it.returncode == 0
    assert "mine: cross-entropy with a tenth spread over all candidates" in with_it.stdout
    assert "nll: negative log-likelihood" in with_it.stdout
