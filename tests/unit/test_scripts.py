"""Chinese, Japanese and Thai: words are found, answers matched and passages cut without spaces between words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_retrieval.data.convert.registry import DatasetConverterConfig
from megatron_retrieval.data.convert.run import convert_dataset
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.index.bm25 import LexicalConfig, LexicalIndex, build_lexical_index
from megatron_retrieval.tokenizers.words import WordAnalyzer, WordConfig
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.answer_text import normalized
from megatron_retrieval.utils.scripts import join_words, split_words


def test_bm25(tmp_path: Path) -> None:
    passages = [
        Passage("1", "青い湖", "青い湖は北にあります"),
        Passage("2", "赤い塔", "赤い塔は古い王が建てました"),
        Passage("3", "石の橋", "石の橋は長いです"),
        Passage("4", "แม่น้ำ", "แม่น้ำสายนี้ไหลไปทางทิศใต้"),
        Passage("5", "长城", "长城是古代中国的防御工程"),
    ]
    config = LexicalConfig(words=WordConfig(stemmer="none", stop_words=False))
    build_lexical_index(passages, len(passages), config, "f", tmp_path / "bm25")
    questions = ["青い湖はどこですか", "誰が赤い塔を建てましたか", "แม่น้ำไหลไปทางไหน", "谁建造了长城", "湖 北"]
    assert LexicalIndex(tmp_path / "bm25").search(questions, 1).rows[:, 0].tolist() == [0, 1, 3, 4, 0]


def test_words_beside_characters() -> None:
    stems = WordAnalyzer(WordConfig()).stems("The iPhone15を買うコーヒー boxes")
    pairs = ["を買", "買う", "うコ", "コー", "ーヒ", "ヒー"]
    assert stems == ["iphone15", "を", "買", "う", "コ", "ー", "ヒ", "ー", *pairs, "box"]


@pytest.mark.parametrize(
    ("answer", "passage", "contained"),
    [
        ("北", "青い湖は北にあります", True),
        ("ガラス", "窓はガラスでできている", True),  # NFD parts the mark from its character
        ("カラス", "窓はガラスでできている", False),
        ("ทิศใต้", "แม่น้ำสายนี้ไหลไปทางทิศใต้", True),
        ("1983年", "塔は1983年に建てられた", True),
        ("98", "塔は1983年に建てられた", False),
        ("art", "東京のparty", False),
        ("東京", "京東", False),
    ],
)
def test_answers(answer: str, passage: str, contained: bool) -> None:
    assert (normalized(answer) in normalized(passage)) is contained


def test_passages_are_cut_between_characters(tmp_path: Path) -> None:
    text = "北京是中国的首都。" * 3 + "\nIt has 21 million people, 万里の長城 is near.\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    settings = {"format": "text", "input": (str(tmp_path / "a.txt"),), "output": str(tmp_path / "out")}
    convert_dataset(DatasetConverterConfig(**settings, passage_words=10))
    texts = [passage.text for _, passage in read_passages(tmp_path / "out" / "psgs_w10.tsv")]
    assert texts == [
        "北京是中国的首都。北京",
        "是中国的首都。北京是中",
        "国的首都。 It has 21 million people, 万里の長城",
        "is near.",
    ]


def test_names_in_a_text_with_spaces_are_words() -> None:
    assert split_words("Beijing (北京市) lies in China") == ["Beijing ", "(北京市) ", "lies ", "in ", "China "]


@given(st.text(st.sampled_from(" \n aé1.,。北京ガ\u3099กิ้中-'")))
def test_cutting_loses_nothing(text: str) -> None:
    words = split_words(text)
    assert all(word.strip() for word in words)
    assert join_words(words) == " ".join(text.split())


@given(st.text(st.characters(max_codepoint=0x24F, exclude_categories=["Cs"])))
def test_words_with_spaces_are_those_of_white_space(text: str) -> None:
    assert [word.rstrip(" ") for word in split_words(text)] == text.split()
