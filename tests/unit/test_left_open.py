"""What flags say of a reader where its checkpoint says nothing, and what they may not say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_retrieval.applications.questions_to_read import PassageSearchConfig
from megatron_retrieval.applications.search import SearchOptionsConfig
from megatron_retrieval.data.layouts.prompt import PromptFormatConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.extractive_answers import SpanChoiceConfig
from megatron_retrieval.models.generation import BeamSearchConfig
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.readers.causal import CAUSAL
from megatron_retrieval.readers.extractive import EXTRACTIVE
from megatron_retrieval.readers.left_open import LeftOpenConfig, ScoresOf
from megatron_retrieval.readers.registry import READERS
from megatron_retrieval.readers.settings import ReaderAnswersConfig
from megatron_retrieval.retrieval.reranker import RerankConfig

TRAINED = PassageScoreConfig(passage_score_use="token", passage_score_divisor=0.05)


def _saved(layout: PromptFormatConfig | None = None, scores: PassageScoreConfig | None = None) -> Any:
    found = scores or PassageScoreConfig()
    return SimpleNamespace(folder=Path("reader"), layout=layout, stated_scores=scores, passage_scores=found)


def test_a_layout_that_is_not_stated() -> None:
    asked = LeftOpenConfig(reader_seq_length=320, prompt_answer="A:", temperature=2.0)
    expected = PromptFormatConfig(reader_seq_length=320, prompt_answer="A:")
    assert asked.over(PromptFormatConfig(), _saved()) == expected
    assert LeftOpenConfig().over(PromptFormatConfig(), _saved()) == PromptFormatConfig()
    with pytest.raises(ConfigError, match="--title-prefix: the reader reader has no use for it"):
        LeftOpenConfig(title_prefix="title:").over(PromptFormatConfig(), _saved())


def test_a_layout_that_is_stated_may_be_repeated() -> None:
    stated = PromptFormatConfig(reader_seq_length=320, prompt_answer="A:")
    for asked in (LeftOpenConfig(), LeftOpenConfig(reader_seq_length=320, prompt_answer="A:")):
        assert asked.over(PromptFormatConfig(), _saved(stated)) == stated
    with pytest.raises(ConfigError, match="--reader-seq-length 256: the reader reader was trained with 320; leave it"):
        LeftOpenConfig(reader_seq_length=256).over(PromptFormatConfig(), _saved(stated))


@pytest.mark.parametrize(
    ("scores_of", "stated", "temperature", "divisor"),
    [
        ("retriever", None, None, 1.0),
        ("retriever", None, 0.05, 0.05),
        ("retriever", TRAINED, None, 0.05),
        ("retriever", TRAINED, 0.05, 0.05),
        ("reranker", TRAINED, None, 1.0),
        ("reranker", TRAINED, 0.2, 0.2),
        ("other", TRAINED, None, 0.05),
        ("other", TRAINED, 0.2, 0.2),
    ],
)
def test_what_scores_are_divided_by(
    scores_of: ScoresOf, stated: PassageScoreConfig | None, temperature: float | None, divisor: float
) -> None:
    found = LeftOpenConfig(temperature=temperature).scores(_saved(scores=stated), scores_of)
    assert found.passage_score_divisor == divisor
    assert found.passage_score_use == ("none" if stated is None else "token")


def test_the_retrievers_scores_are_divided_as_in_training() -> None:
    with pytest.raises(ConfigError, match="the reader reader was trained with scores divided by 0"):
        LeftOpenConfig(temperature=0.2).scores(_saved(scores=TRAINED), "retriever")


def test_what_scores_are_of() -> None:
    evidence, found = Path("evidence"), {}
    dense: dict[str, Any] = {"retriever": Path("retriever"), "embeddings": Path("embeddings"), "evidence": evidence}
    reranked = SearchOptionsConfig(rerank=RerankConfig(rerank=Path("reranker")))
    searches = {
        "dense": PassageSearchConfig(**dense),
        "words": PassageSearchConfig(evidence=evidence, bm25_index=Path("bm25")),
        "both": PassageSearchConfig(**dense, bm25_index=Path("bm25")),
        "reranked": PassageSearchConfig(**dense, options=reranked),
    }
    for name, search in searches.items():
        what = search.what()
        assert what is not None
        found[name] = what.scores_of
    assert found == {"dense": "retriever", "words": "other", "both": "other", "reranked": "reranker"}


def test_a_flag_that_a_reader_has_no_use_for_is_refused() -> None:
    search = BeamSearchConfig(answer_from="concatenated", marginal_decoding="thorough", sampling_temperature=1.0)
    asked = ReaderAnswersConfig(max_answer_length=5, search=search)
    named = (
        "--answer-from concatenated, --marginal-decoding thorough, --sampling-temperature 1.0: the extractive reader"
    )
    with pytest.raises(ConfigError, match=named):
        asked.of(EXTRACTIVE.answers, EXTRACTIVE.name)
    choice = ReaderAnswersConfig(choice=SpanChoiceConfig(answer_choice="passage"))
    assert choice.of(EXTRACTIVE.answers, EXTRACTIVE.name).answer_choice == "passage"
    with pytest.raises(ConfigError, match="--answer-choice passage: the causal reader has no use for that"):
        choice.of(CAUSAL.answers, CAUSAL.name)
    for kind in READERS.values():
        assert ReaderAnswersConfig(max_answer_length=5).of(kind.answers, kind.name).max_answer_length == 5
