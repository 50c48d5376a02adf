"""A 20-step run gives one loss curve and one recall at every layout, and continues at any other from a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.data.examples.dpr import DprDataset
from megatron_retrieval.index.exact.flat import FlatIndex
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.retriever_finetune import RetrieverFinetuneConfig, build
from megatron_retrieval.testing.runs import FINETUNE, LAYOUTS, curve, flip_byte, rewind, saved_weights, train
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import write_tiny_dpr
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.training.steps.contrastive_step import ContrastiveStep

TINY = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --max-position-embeddings 32 --init-method-std 0.2 "
    "--retriever-seq-length 32 --query-seq-length 16 --no-tensorboard --log-interval 1 --eval-interval 20 "
    "--global-batch-size 8 --micro-batch-size 3 --lr 3e-3 --lr-warmup-iters 2 --seed 5 "
    "--pooling mean --biencoder-shared-query-context-model --no-retriever-score-scaling"
).split()


def tiny_run(folder: Path, name: str, *flags: str, dropout: float = 0.0) -> list[str]:
    """Command-line words of a tiny run that writes into `folder / name`."""
    data, vocab = write_tiny_dpr(folder)
    words = [*TINY, "--train-data", str(data), "--valid-data", str(data), "--vocab-file", str(vocab)]
    words += ["--hidden-dropout", str(dropout), "--attention-dropout", str(dropout)]
    return [*words, "--output-dir", str(folder / name), *flags]


def _train_and_search(topology: ProcessTopology, words: list[str]) -> list[float]:
    """Recall at 1 and 3 of the trained encoder, over the passages of all questions."""
    config = parse_config(RetrieverFinetuneConfig, words)
    trainer = build(config, topology)
    trainer.fit()
    data = dataclasses.replace(config.data, num_hard_negatives=0)
    assert config.vocab_file is not None
    dataset = DprDataset(data, config.text_format, WordPieceTokenizer(config.vocab_file), seed=0)
    batch = dataset.batch(range(len(dataset)), epoch=0, first_position=0)
    assert isinstance(trainer.step, ContrastiveStep)
    with torch.no_grad():
        queries, passages = trainer.step.model.eval()(batch.questions, batch.passages)
    rows = FlatIndex(passages).search(queries, 3).rows
    hits = rows == torch.arange(len(dataset))[:, None]
    return [hits[:, :k].any(1).float().mean().item() for k in (1, 3)]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in one process, with checkpoints after 10 and 20 steps."""
    folder = tmp_path_factory.mktemp("single")
    flags = ["--train-iters", "20", "--save", str(folder / "checkpoints"), "--save-interval", "10"]
    (recall,) = run_on_ranks(_train_and_search, 1, tiny_run(folder, "run", *flags))
    (folder / "recall.json").write_text(json.dumps(recall))
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_losses_and_recall_at_every_layout(single: Path, tmp_path: Path, layout: str) -> None:
    train(FINETUNE, tiny_run(tmp_path, "run", "--train-iters", "20"), *LAYOUTS[layout])
    expected = curve(single / "run")
    assert len(expected) == 20
    assert expected[-1] < 0.5 * expected[0]
    assert curve(tmp_path / "run") == pytest.approx(expected, rel=1e-4)
    false_negatives = curve(tmp_path / "run", "num_false_negatives")
    assert false_negatives == curve(single / "run", "num_false_negatives")
    assert max(false_negatives) > 0
    assert curve(tmp_path / "run", "valid_accuracy") == pytest.approx(curve(single / "run", "valid_accuracy"))


def test_checkpoint_of_two_shards_continues_at_other_layouts(single: Path, tmp_path: Path) -> None:
    """Saved at TP 2 after 10 of 20 steps; continued at TP 1, DP 2 and TP 2 x DP 2."""
    saved = tmp_path / "tp2"
    flags = ["--train-iters", "20", "--save", str(saved), "--save-interval", "10"]
    train(FINETUNE, tiny_run(tmp_path, "first", *flags), *LAYOUTS["TP 2"])
    rewind(saved, 10)
    for number, layout in enumerate([(1, 1), LAYOUTS["DP 2"], LAYOUTS["TP 2 x DP 2"]]):
        words = tiny_run(tmp_path, f"continued{number}", "--train-iters", "20", "--load", str(saved))
        train(FINETUNE, words, *layout)
        assert curve(tmp_path / f"continued{number}") == pytest.approx(curve(single / "run")[10:], rel=1e-4)


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    """Dropout, sampled hard negatives and passages of batches before included; resumed from the newest whole
    checkpoint."""
    flags = ["--train-iters", "9", "--save-interval", "5", "--memory-batches", "3", "--memory-start", "2"]
    whole = tiny_run(tmp_path, "whole", *flags, "--save", str(tmp_path / "a"), dropout=0.2)
    train(FINETUNE, whole)
    flip_byte(tmp_path / "a" / "iter_0000009" / "optimizer.tp0of1.safetensors")
    resumed = tiny_run(
        tmp_path, "resumed", *flags, "--load", str(tmp_path / "a"), "--save", str(tmp_path / "b"), dropout=0.2
    )
    train(FINETUNE, [*resumed, "--async-save"])
    assert curve(tmp_path / "resumed") == curve(tmp_path / "whole")[5:]
    first, second = (saved_weights(tmp_path / name / "iter_0000009") for name in "ab")
    assert all(first[name].equal(second[name]) for name in first | second)


@pytest.mark.parametrize(("precision", "layout"), [("--bf16", (1, 1)), ("--fp16", LAYOUTS["TP 2"])])
def test_half_precision_learns_and_resumes(tmp_path: Path, precision: str, layout: tuple[int, int]) -> None:
    """That ranks share a scale of the loss is what two of them are for; bf16 has none."""
    flags = [precision, "--allow-slow-dtype", "--train-iters", "20"]
    saved = ["--save-interval", "10", "--save", str(tmp_path / "a")]
    train(FINETUNE, tiny_run(tmp_path, "whole", *flags, *saved), *layout)
    losses = curve(tmp_path / "whole")
    assert losses[-1] < 0.6 * losses[0]
    rewind(tmp_path / "a", 10)
    words = tiny_run(tmp_path, "resumed", *flags, "--load", str(tmp_path / "a"))
    train(FINETUNE, words, *layout)
    assert curve(tmp_path / "resumed") == losses[10:]


def test_divergence_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    words = tiny_run(tmp_path, "run", "--train-iters", "20", "--clip-grad", "0", "--save", str(tmp_path / "a"))
    words[words.index("--lr") + 1] = "1e30"
    with pytest.raises(
        ProcessRaisedException, match=r"iteration \d+: .* not finite; it is step 5 in a row .* Lower --lr"
    ):
        train(FINETUNE, words)
    assert not (tmp_path / "a").exists()


def test_resumed_run_may_prune_the_checkpoint_that_it_came_from(tmp_path: Path) -> None:
    folder = str(tmp_path / "a")
    flags = ["--save", folder, "--load", folder, "--save-interval", "2", "--keep-last", "1", "--async-save"]
    train(FINETUNE, tiny_run(tmp_path, "run", *flags, "--train-iters", "2"))
    words = tiny_run(tmp_path, "run", *flags, "--train-iters", "7")
    place = words.index("--vocab-file")
    del words[place : place + 2]  # the vocabulary is then the checkpoint's
    train(FINETUNE, words)
    assert sorted(path.name for path in (tmp_path / "a").glob("iter_*")) == ["iter_0000007"]
