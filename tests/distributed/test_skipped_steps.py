"""A step whose loss or gradient is not finite changes no weight and saves nothing; a few in a row end the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_training_layouts import tiny_run

from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.errors import DivergenceError
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.retriever_finetune import RetrieverFinetuneConfig, build
from megatron_retrieval.testing.runs import curve
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.training.skipped_steps import MAX_SKIPPED_IN_A_ROW

#: no batch has it: the loss stays finite when its embedding's gradient is not
UNUSED_ID = 1
PRECISIONS = {
    "fp32": ("--clip-grad", "1"),
    "fp32 without clipping": ("--clip-grad", "0"),
    "bf16": ("--bf16", "--allow-slow-dtype", "--clip-grad", "1"),
    "fp16": ("--fp16", "--allow-slow-dtype", "--initial-loss-scale", "256", "--min-loss-scale", "256"),
}


class _Poisoned:
    """A step that goes wrong from one iteration (from 0) up to another."""

    def __init__(self, step: Any, ill: range, what: str) -> None:
        self.step, self.ill, self.what = step, ill, what

    def forward_backward(self, batch: Any, iteration: int, loss_scale: float) -> Mapping[str, Any]:
        metrics = dict(self.step.forward_backward(batch, iteration, loss_scale))
        if iteration in self.ill and self.what == "gradient":
            (embedding,) = [p for name, p in self.step.model.named_parameters() if "word_embeddings" in name]
            embedding.main_grad[UNUSED_ID, 0] = torch.inf
        elif iteration in self.ill and self.what == "weight":
            (embedding,) = [p for name, p in self.step.model.named_parameters() if "word_embeddings" in name]
            embedding.data[UNUSED_ID, 0] = torch.nan
        elif iteration in self.ill:
            metrics["loss"] = metrics["loss"] * torch.nan
        return metrics

    def evaluate(self, batch: Any) -> Mapping[str, Any]:
        return self.step.evaluate(batch)


def _train(topology: ProcessTopology, words: list[str], ill: range, what: str) -> str:
    """What the run ends with."""
    trainer = build(parse_config(RetrieverFinetuneConfig, words), topology)
    trainer.step = _Poisoned(trainer.step, ill, what)  # type: ignore[assignment]
    try:
        trainer.fit()
    except DivergenceError as error:
        return str(error)
    return "finished"


def _words(folder: Path, precision: str, num_steps: int) -> list[str]:
    saving = ("--save", str(folder / "saved"), "--save-interval", "3", "--keep-last", "1", "--eval-interval", "99")
    return tiny_run(folder, "run", *PRECISIONS[precision], *saving, "--train-iters", str(num_steps))


def _saved(folder: Path) -> list[str]:
    names = sorted(path.name for path in (folder / "saved").glob("iter_*"))
    shards = list((folder / "saved").glob("iter_*/model.*.safetensors"))
    assert shards
    assert all(weight.isfinite().all() for shard in shards for weight in load_file(shard).values())
    return names


@pytest.mark.parametrize("what", ["gradient", "loss"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_ill_step_is_left_out(tmp_path: Path, precision: str, what: str) -> None:
    assert run_on_ranks(_train, 1, _words(tmp_path, precision, 5), range(2, 3), what) == ["finished"]
    assert _saved(tmp_path) == ["iter_0000005"]
    assert curve(tmp_path / "run", "skipped_steps") == [1, 1, 1]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_several_in_a_row_end_the_run_and_the_last_good_checkpoint_stays(tmp_path: Path, precision: str) -> None:
    (end,) = run_on_ranks(_train, 1, _words(tmp_path, precision, 30), range(4, 99), "gradient")
    assert f"iteration {4 + MAX_SKIPPED_IN_A_ROW}: " in end
    remedy = "train with --bf16" if precision == "fp16" else "Lower --lr and resume an earlier checkpoint"
    assert remedy in end
    assert _saved(tmp_path) == ["iter_0000003"]


def test_a_ruined_weight_that_no_loss_shows_is_not_saved(tmp_path: Path) -> None:
    (end,) = run_on_ranks(_train, 1, _words(tmp_path, "fp32", 9), range(4, 5), "weight")
    assert end.startswith("iteration 6: the weights of ")
    assert end.endswith("are not finite, and are not saved. Lower --lr and resume an earlier checkpoint.")
    assert _saved(tmp_path) == ["iter_0000003"]


@pytest.mark.parametrize("tensor_parallel", [1, 2], ids=["DP 2", "TP 2"])
def test_all_ranks_leave_the_same_step_out(tmp_path: Path, tensor_parallel: int) -> None:
    words = _words(tmp_path, "fp32", 5)
    ends = run_on_ranks(_train, 2, words, range(2, 3), "gradient", tensor_model_parallel_size=tensor_parallel)
    assert ends == ["finished", "finished"]
    assert _saved(tmp_path) == ["iter_0000005"]
    assert curve(tmp_path / "run", "skipped_steps") == [1, 1, 1]


def test_a_loss_scale_that_is_being_found_ends_no_run(tmp_path: Path) -> None:
    words = _words(tmp_path, "fp32", 9)
    words += ["--fp16", "--allow-slow-dtype", "--hysteresis", "1"]
    words += ["--initial-loss-scale", str(2.0**40), "--min-loss-scale", "1"]
    (end,) = run_on_ranks(_train, 1, words, range(MAX_SKIPPED_IN_A_ROW + 2), "gradient")
    assert end == "finished"
