"""Where a reader's passages come from is said without contradiction."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_retrieval.applications.questions_to_read import PassageSearchConfig, QuestionsToReadConfig
from megatron_retrieval.applications.search import SearchConfig, SearchOptionsConfig
from megatron_retrieval.data.files.passage_questions import PassagesToReadConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.index.approximate.index import ApproximateSearchConfig

PLACES = {"retriever": Path("r"), "evidence": Path("e"), "embeddings": Path("m")}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("retriever", "evidence"), "--retriever and --embeddings belong together"),
        (("evidence", "embeddings"), "--retriever and --embeddings belong together"),
        (("retriever", "embeddings"), "--evidence is what --retriever or --bm25-index searches"),
        (("bm25_index",), "--evidence is what --retriever or --bm25-index searches"),
        (("evidence",), "--evidence is what --retriever or --bm25-index searches"),
    ],
)
def test_what_belongs_together(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PassageSearchConfig(**{name: Path(name) for name in given})  # type: ignore[arg-type]


def test_what_is_searched() -> None:
    assert PassageSearchConfig().what() is None
    options = SearchOptionsConfig(verify_embeddings=True, approximate=ApproximateSearchConfig(index=Path("i")))
    what = PassageSearchConfig(**PLACES, options=options).what()
    assert what is not None
    assert (what.retriever, what.evidence, what.embeddings, what.options) == (*PLACES.values(), options)
    words = PassageSearchConfig(evidence=Path("e"), bm25_index=Path("b")).what()
    assert words is not None
    assert (words.retriever, words.bm25_index) == (None, Path("b"))


def test_an_index_is_of_embeddings() -> None:
    options = SearchOptionsConfig(approximate=ApproximateSearchConfig(index=Path("i")))
    with pytest.raises(ConfigError, match="--index is what a retriever searches: give --retriever"):
        PassageSearchConfig(options=options)
    with pytest.raises(ConfigError, match="--index is of embeddings: give --embeddings and --retriever"):
        SearchConfig(evidence=Path("e"), bm25_index=Path("b"), options=options)


def test_passages_are_not_searched_to_be_left_unread() -> None:
    closed = PassagesToReadConfig(closed_book=True)
    with pytest.raises(ConfigError, match="--closed-book reads no passages, --retriever or --bm25-index finds some"):
        QuestionsToReadConfig(questions=Path("q"), reading=closed, search=PassageSearchConfig(**PLACES))
