"""Settings of end-to-end training that contradict one another, and what follows from others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from megatron_retrieval.data.examples.open_questions import AskedDataConfig
from megatron_retrieval.data.files.question_files import AskedQuestionsConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.end_to_end import FreezeConfig
from megatron_retrieval.parallel.topology import EmbeddingRanksConfig
from megatron_retrieval.recipes.end_to_end.config import (
    AskedTrainingDataConfig,
    EndToEndFinetuneConfig,
    EndToEndTrainingConfig,
    ModuleRatesConfig,
)
from megatron_retrieval.refresh.config import IndexRefreshConfig
from megatron_retrieval.training.metrics_log import LogConfig
from megatron_retrieval.training.steps.end_to_end_step import EndToEndStepConfig
from megatron_retrieval.training.steps.passage_search import TopkConfig


def _config(**settings: Any) -> EndToEndFinetuneConfig:
    start: dict[str, Any] = {name: Path(name) for name in ("retriever", "reader", "evidence")}
    data = AskedTrainingDataConfig(train=AskedDataConfig(train_data=("train.qa.csv",), asked=AskedQuestionsConfig()))
    training = EndToEndTrainingConfig(log=LogConfig(output_dir="out"))
    return EndToEndFinetuneConfig(**{**start, "data": data, "training": training, **settings})


def test_without_scores_in_the_reader_the_retriever_stays() -> None:
    """No gradient reaches it, and weight decay alone would make it smaller."""
    assert _config().frozen == FreezeConfig()
    frozen = _config(step=EndToEndStepConfig(objective="fid")).frozen
    assert frozen == FreezeConfig(freeze_query_encoder=True, freeze_passage_encoder=True)
    assert _config(step=EndToEndStepConfig(objective="holding-passages")).frozen == FreezeConfig(freeze_reader=True)


def test_rates_of_parts_follow_the_schedule_of_the_whole() -> None:
    rates = ModuleRatesConfig(retriever_lr=1e-5)
    assert rates.multipliers(2e-5) == {"retriever.": 0.5}
    assert ModuleRatesConfig(score_weight_lr=1e-2).multipliers(2e-5) == {"score_weight": pytest.approx(500)}
    assert ModuleRatesConfig().multipliers(0.0) == {}
    with pytest.raises(ConfigError, match="--lr, which must be above 0"):
        rates.multipliers(0.0)


EMBEDDING_RANKS = dataclasses.replace(
    EndToEndTrainingConfig(log=LogConfig(output_dir="out")), parallel=EmbeddingRanksConfig(num_embedding_ranks=2)
)
CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "ranks without refreshing": ({"training": EMBEDDING_RANKS}, "have nothing to do without --index-refresh-interval"),
    "refreshing what is frozen": (
        {
            "freeze": FreezeConfig(freeze_passage_encoder=True),
            "index": IndexRefreshConfig(index_refresh_interval=10),
        },
        "leave out --index-refresh-interval",
    ),
    "nothing learns": (
        {"freeze": FreezeConfig(freeze_reader=True), "step": EndToEndStepConfig(objective="fid")},
        "leaves nothing to train",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_refused(case: str) -> None:
    settings, message = CONTRADICTIONS[case]
    with pytest.raises(ConfigError, match=message):
        _config(**settings)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="--num-candidates 3 must not be below --num-passages 5"):
        TopkConfig(num_passages=5, num_candidates=3)
    with pytest.raises(ConfigError, match="--null-passage is one of --num-passages, which must be at least 2"):
        TopkConfig(num_passages=1, null_passage=True)
    with pytest.raises(ConfigError, match="leave nothing to train"):
        FreezeConfig(freeze_query_encoder=True, freeze_passage_encoder=True, freeze_reader=True)
