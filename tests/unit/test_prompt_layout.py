"""Prompts are the texts that they stand for; only passages are cut, each for itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from megatron_retrieval.data.layouts.prompt import PromptFormatConfig, PromptLayout
from megatron_retrieval.data.stores.ragged import Ragged, tokenize
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.testing.tiny_byte_bpe import write_byte_bpe
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.types.causal import continued
from megatron_retrieval.types.tokens import TokenBatch

CONFIG = PromptFormatConfig(
    prompt_instruction="Answer.",
    prompt_context="## C",
    prompt_question="## Q",
    prompt_answer="## A",
    question_seq_length=12,
    reader_seq_length=80,
)
TITLES, TEXTS = ["Paris", "", "the tower"], ["the capital of France", "a river runs", "stands in the city " * 20]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> ByteBpeTokenizer:
    return ByteBpeTokenizer(write_byte_bpe(tmp_path_factory.mktemp("bpe")))


def _texts(vocabulary: ByteBpeTokenizer, batch: TokenBatch) -> list[str]:
    return vocabulary.decode([ids[:length].tolist() for ids, length in zip(batch.ids, batch.lengths, strict=True)])


def test_what_is_read(vocabulary: ByteBpeTokenizer) -> None:
    layout = PromptLayout(CONFIG, vocabulary)
    questions = tokenize(vocabulary, ["who?", "where is it?", "did it?"])
    columns = tokenize(vocabulary, TITLES), tokenize(vocabulary, TEXTS)
    each = layout.with_passages(questions, *columns)
    first, second, third = _texts(vocabulary, each)
    assert first == "Answer.\n\n## C\nParis\nthe capital of France\n\n## Q\nwho?\n\n## A\n"
    assert second == "Answer.\n\n## C\na river runs\n\n## Q\nwhere is it?\n\n## A\n"
    assert int(each.lengths[2]) == CONFIG.reader_seq_length
    cut = third.removeprefix("Answer.\n\n## C\n").removesuffix("\n\n## Q\ndid it?\n\n## A\n")
    assert f"the tower\n{TEXTS[2]}".startswith(cut)
    assert _texts(vocabulary, layout.alone(questions))[1] == "Answer.\n\n## Q\nwhere is it?\n\n## A\n"
    numbers = Ragged(np.array([2, 0, 1]), np.array([0, 0, 2, 3]))
    alone, both, one = _texts(vocabulary, layout.together(questions, numbers, columns))
    assert alone == "Answer.\n\n## Q\nwho?\n\n## A\n"
    assert one == "Answer.\n\n## C\na river runs\n\n## Q\ndid it?\n\n## A\n"
    assert both.endswith("\n\nParis\nthe capital of France\n\n## Q\nwhere is it?\n\n## A\n")
    assert both.startswith("Answer.\n\n## C\nthe tower\nstands in")


@pytest.mark.parametrize("num_passages", [0, 1, 3])
def test_the_longest_prompt(vocabulary: ByteBpeTokenizer, num_passages: int) -> None:
    """That of passages which are all cut, for a question of no token; one passage never exceeds the setting."""
    layout = PromptLayout(CONFIG, vocabulary)
    columns = tokenize(vocabulary, TITLES[:1]), tokenize(vocabulary, TEXTS[2:])
    passages = Ragged(np.zeros(num_passages, np.int64), np.array([0, num_passages]))
    lengths = [
        int(layout.together(tokenize(vocabulary, [question]), passages, columns).lengths[0])
        for question in ("", "where is the tower?")
    ]
    longest = layout.longest(num_passages)
    assert longest >= max(lengths)
    assert longest == (max(lengths) if num_passages else CONFIG.reader_seq_length)


def test_room_for_a_passage(vocabulary: ByteBpeTokenizer) -> None:
    with pytest.raises(ConfigError, match=r"--reader-seq-length 30 leaves no room .* need at least"):
        PromptLayout(dataclasses.replace(CONFIG, reader_seq_length=30), vocabulary)


def test_answers_behind_prompts() -> None:
    prompts = TokenBatch(torch.tensor([[5, 6, 7], [5, 0, 0], [0, 0, 0]]), torch.tensor([3, 1, 1]))
    batch = continued(prompts, torch.tensor([[8, 9, 2], [4, -1, -1], [-1, -1, -1]]))
    assert batch.tokens.lengths.tolist() == [5, 1, 1]
    assert batch.tokens.ids[0, :5].tolist() == [5, 6, 7, 8, 9]
    assert batch.labels[0].tolist() == [-1, -1, 8, 9, 2, -1, -1, -1]
    assert batch.labels[1:, 0].tolist() == [4, -1]
    assert int((batch.labels[1:, 1:] >= 0).sum()) == 0
