"""Where a reader's passages come from is said without contradiction."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_retrieval.data.reader_questions import PassagesToReadConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.index.approximate import ApproximateSearchConfig
from megatron_retrieval.recipes.questions_to_read import PassageSearchConfig, QuestionsToReadConfig
from megatron_retrieval.recipes.search import SearchConfig

PLACES = {"retriever": Path("r"), "evidence": Path("e"), "embeddings": Path("m")}


@pytest.mark.parametrize("missing", PLACES)
def test_a_search_needs_all_three(missing: str) -> None:
    with pytest.raises(ConfigError, match="--retriever, --evidence and --embeddings belong together"):
        PassageSearchConfig(**{name: path for name, path in PLACES.items() if name != missing})


def test_what_is_searched() -> None:
    assert PassageSearchConfig().what() is None
    what = PassageSearchConfig(**PLACES, verify_embeddings=True).what()
    assert what is not None
    assert (what.load, what.evidence, what.embeddings, what.verify_embeddings) == (*PLACES.values(), True)


def test_an_index_reaches_the_search() -> None:
    approximate = ApproximateSearchConfig(index=Path("i"), nprobe=3)
    what = PassageSearchConfig(**PLACES, approximate=approximate).what()
    assert what is not None
    assert what.approximate == approximate
    with pytest.raises(ConfigError, match="--index is what a retriever searches: give --retriever"):
        PassageSearchConfig(approximate=approximate)
    with pytest.raises(ConfigError, match="--index is of embeddings: give --embeddings and --load"):
        SearchConfig(evidence=Path("e"), bm25_index=Path("b"), approximate=approximate)


def test_passages_are_not_searched_to_be_left_unread() -> None:
    closed = PassagesToReadConfig(closed_book=True)
    with pytest.raises(ConfigError, match="--closed-book reads no passages, --retriever finds some"):
        QuestionsToReadConfig(questions=Path("q"), reading=closed, search=PassageSearchConfig(**PLACES))
