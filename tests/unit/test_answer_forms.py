"""Answers in WordPiece get the characters of the passage that has them, and else the usual spaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_retrieval.data.stores.ragged import tokenize
from megatron_retrieval.evaluation.wordpiece_text import AnswerForms, tidy
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.types.questions import Passage

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIGNS = [".", ",", "'", "$", "(", ")", "-", ";"]
WORDS = ["the", "st", "john", "s", "u", "can", "t", "million", "jose", "in", "paris", "##ian", "par", "##is", "cost"]
VOCABULARY = [*SPECIAL, *SIGNS, *WORDS, "1", "5", "500", "san"]
PASSAGES = [
    Passage("1", "San José", "It cost $5 million in the U.S.; St. John's can't."),
    Passage("2", "Parisian", "1,500 parisian in Paris; the 1 , 500 U. S. (Qx)."),
]


@pytest.fixture
def tokenizer(tmp_path: Path) -> WordPieceTokenizer:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n")
    return WordPieceTokenizer(path)


def written(tokenizer: WordPieceTokenizer, answer: str, passages: list[Passage] = PASSAGES) -> str:
    """The answer as the reader would write it, framed; the passages stand behind another question's."""
    others = [Passage("0", "the 1", "st 500")]
    titles, texts = (
        tokenize(tokenizer, [getattr(passage, field) for passage in others + passages]) for field in ("title", "text")
    )
    special = tokenizer.special
    ids = [special.begin, *tokenizer.encode([answer])[0], special.end, special.pad, special.pad]
    return AnswerForms(tokenizer).text(ids, passages, titles, texts, len(others))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("1,500", "1,500"),
        ("u.s.", "U.S."),
        ("st. john's", "St. John's"),
        ("can't", "can't"),
        ("$5 million", "$5 million"),
        ("jose", "José"),
        ("san jose", "San José"),
        ("paris", "Paris"),
        ("parisian", "parisian"),
        ("(qx)", "(Qx)"),  # a word without a token in the vocabulary
    ],
)
def test_as_the_passage_has_it(tokenizer: WordPieceTokenizer, answer: str, text: str) -> None:
    assert written(tokenizer, answer) == text


def test_the_first_passage_decides(tokenizer: WordPieceTokenizer) -> None:
    assert written(tokenizer, "1 , 500", PASSAGES[::-1]) == "1,500"
    other = Passage("3", "", "1, 500")
    assert written(tokenizer, "1,500", [other, *PASSAGES]) == "1, 500"


def test_no_part_of_a_word_and_nothing_of_other_questions(tokenizer: WordPieceTokenizer) -> None:
    passages = [Passage("4", "", "JOSE PARISIAN")]
    assert written(tokenizer, "par", passages) == "par"
    assert written(tokenizer, "the 1", passages) == "the 1"
    assert written(tokenizer, "st 500", passages) == "st 500"
    assert written(tokenizer, "", passages) == ""
    assert written(tokenizer, "u.s.", []) == "u.s."


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("1 , 500", "1,500"),
        ("10 : 30", "10:30"),
        ("3 . 5 million", "3.5 million"),
        ("1914 – 1918", "1914–1918"),
        ("u . s .", "u.s."),
        ("j . r . r . tolkien", "j.r.r. tolkien"),
        ("st . john ' s", "st. john's"),
        ("can ' t", "can't"),
        ("o ' brien", "o'brien"),
        ("$ 5 million", "$5 million"),
        ("50 %", "50%"),
        ("twenty - one", "twenty-one"),
        ("paris , france", "paris, france"),
        ("louis xiv ( 1638 )", "louis xiv (1638)"),
        ("the boys ' school", "the boys ' school"),
        ("", ""),
    ],
)
def test_spaces_around_signs(words: str, text: str) -> None:
    assert tidy(words) == text
