"""The best span over passages, against a search of all spans, and its place in the original text."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.data.layouts.extractive import ExtractiveFormatConfig
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.extractive_answers import ExtractiveAnswerConfig, ExtractiveAnswerer, best_spans
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.testing.tiny_byte_bpe import write_roberta_bpe
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.types.extractive import ExtractivePassages, SpanLogits
from megatron_retrieval.types.questions import Passage

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cafe", "##s", "of", "paris", "rome", "(", ")", "who"]
NUM_ROWS, WIDTH = 40, 9


def test_best_spans_equal_a_search_of_all() -> None:
    random = torch.Generator().manual_seed(0)
    starts, ends = (torch.randn(NUM_ROWS, WIDTH, generator=random) for _ in range(2))
    continues = torch.rand(NUM_ROWS, WIDTH, generator=random) < 0.3
    first, length = (torch.randint(0, WIDTH, (NUM_ROWS, 1), generator=random) for _ in range(2))
    is_text = (torch.arange(WIDTH) >= first) & (torch.arange(WIDTH) < first + length)
    logits = SpanLogits(starts, ends, torch.zeros(NUM_ROWS))
    for longest in (1, 3, 100):
        best = best_spans(logits, is_text, continues, longest)
        for row in range(NUM_ROWS):
            columns = is_text[row].nonzero().flatten().tolist()
            spans = [
                (s, e)
                for s, e in itertools.product(columns, columns)
                if s <= e < s + longest and not continues[row, s] and not (e + 1 in columns and continues[row, e + 1])
            ]
            if not spans:
                assert best.scores[row] == float("-inf")
                continue
            p_start, p_end = (values[row, columns].log_softmax(0) for values in (starts, ends))
            scores = [p_start[s - columns[0]] + p_end[e - columns[0]] for s, e in spans]
            assert best.scores[row].item() == pytest.approx(max(scores).item(), abs=1e-6)
            assert (int(best.first[row]), int(best.last[row])) == spans[int(torch.stack(scores).argmax())]


class _Oracle(nn.Module):
    """Points to the words `wanted` of every text, and prefers passages that hold the words `preferred`."""

    def __init__(self, wanted: dict[int, float], preferred: dict[int, float]) -> None:
        super().__init__()
        self.wanted, self.preferred = wanted, preferred

    def forward(self, passages: ExtractivePassages) -> SpanLogits:
        ids = passages.tokens.ids
        assert len(ids)  # real models cannot read nothing
        points = _weights(ids, self.wanted)
        return SpanLogits(points, points, _weights(ids, self.preferred).sum(1))


def _weights(ids: Tensor, weights: dict[int, float]) -> Tensor:
    values = torch.zeros(ids.shape)
    for token, weight in weights.items():
        values[ids == token] = weight
    return values


@pytest.fixture
def tokenizer(tmp_path: Path) -> WordPieceTokenizer:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return WordPieceTokenizer(tmp_path / "vocab.txt")


def answerer(
    tokenizer: WordPieceTokenizer,
    wanted: dict[str, float],
    preferred: dict[str, float],
    passage_scores: PassageScoreConfig | None = None,
    **config: object,
) -> ExtractiveAnswerer:
    weights = ({WORDS.index(word): weight for word, weight in table.items()} for table in (wanted, preferred))
    return ExtractiveAnswerer(
        _Oracle(*weights),  # type: ignore[arg-type]
        tokenizer,
        ExtractiveFormatConfig(question_seq_length=4, reader_seq_length=24),
        ExtractiveAnswerConfig(**config),  # type: ignore[arg-type]
        device=torch.device("cpu"),
        passage_scores=passage_scores,
        micro_batch_size=2,
    )


def asked(*texts: str) -> ReaderQuestion:
    passages = tuple(Passage(str(n), "the paris", text) for n, text in enumerate(texts))
    return ReaderQuestion("1", "who who who who who", ("x",), passages, (0.0,) * len(texts))


def test_words_begin_behind_punctuation_where_spaces_are_marked(tmp_path: Path) -> None:
    vocabulary = ByteBpeTokenizer(write_roberta_bpe(tmp_path))
    (paris,) = vocabulary.encode(["Paris"])
    reader = ExtractiveAnswerer(
        _Oracle(dict.fromkeys((*paris, *vocabulary.encode([" Paris"])[0]), 5), {}),  # type: ignore[arg-type]
        vocabulary,
        ExtractiveFormatConfig(question_seq_length=4, reader_seq_length=50),
        ExtractiveAnswerConfig(max_answer_length=len(paris)),
        device=torch.device("cpu"),
    )
    texts = ("Paris, of", "of the “Paris” of", "of (Paris) of", "of the Paris.")
    found = reader.answer([asked(text) for text in texts])
    assert [prediction.text for prediction in found] == ["Paris"] * 4


def test_answers_are_cut_from_the_original_text(tokenizer: WordPieceTokenizer) -> None:
    reader = answerer(tokenizer, {"cafe": 5, "##s": 5}, {"rome": 3})
    questions = [
        asked("Of  Paris", "the Cafés\u00a0(Rome)"),
        asked(),
        asked("", " "),
        asked("(CAFE\u0301)", "rome cafe"),
    ]
    first, second, third, fourth = reader.answer(questions)
    # the piece ##s points as well, but an answer is made of whole words
    assert (first.text, first.passage) == ("Cafés", 1)
    assert (second.text, second.passage) == ("", None)
    assert (third.text, third.passage) == ("", None)
    assert (fourth.text, fourth.passage) == ("cafe", 1)
    assert [prediction.text for prediction in reader.answer(questions[3:])] == ["cafe"]
    assert answerer(tokenizer, {"cafe": 5}, {"(": 3}).answer([asked("(CAFE\u0301)", "rome")])[0].text == "CAFE\u0301"


def test_nothing_to_read_at_all(tokenizer: WordPieceTokenizer) -> None:
    predictions = answerer(tokenizer, {}, {}).answer([asked(), asked()])
    assert [(prediction.text, prediction.passage) for prediction in predictions] == [("", None)] * 2


def test_choice_between_span_and_passage(tokenizer: WordPieceTokenizer) -> None:
    question = asked("the the rome the", "of of of of of of")
    wanted, preferred = {"rome": 9.0}, {"of": 0.1}
    assert answerer(tokenizer, wanted, preferred).answer([question])[0].text == "rome"
    assert answerer(tokenizer, wanted, preferred, answer_choice="passage").answer([question])[0].passage == 1


def test_length_limit(tokenizer: WordPieceTokenizer) -> None:
    wanted = {"the": 2.0, "rome": 2.0}
    question = asked("of the of of rome of")
    reader = answerer(tokenizer, wanted, {}, max_answer_length=3)
    assert reader.answer([question])[0].text in ("the", "rome")
    assert reader.num_long(["of the rome", "of the cafés", "who who who who", ""]) == 2
    with pytest.raises(ConfigError, match="--max-answer-length"):
        ExtractiveAnswerConfig(max_answer_length=0)


def _brute_force(question: ReaderQuestion, wanted: dict[str, float], divisor: float) -> tuple[str, float, int]:
    """p(z | q) P_start P_end of the likeliest word of every passage, equal words added up."""
    weights = [math.exp(score / divisor) for score in question.scores or (0.0,) * len(question.passages)]
    sums: dict[str, float] = {}
    loudest: dict[str, tuple[float, int, str]] = {}
    for place, (passage, weight) in enumerate(zip(question.passages, weights, strict=True)):
        words = passage.text.split()
        points = [math.exp(wanted.get(word.lower(), 0.0)) for word in words]
        if not words:
            continue
        best = max(range(len(words)), key=points.__getitem__)
        share, word = weight / sum(weights) * (points[best] / sum(points)) ** 2, words[best].lower()
        sums[word] = sums.get(word, 0.0) + share
        if share > loudest.get(word, (0.0, 0, ""))[0]:
            loudest[word] = (share, place, words[best])
    answer = max(sums, key=sums.__getitem__)
    return loudest[answer][2], math.log(sums[answer]), loudest[answer][1]


def test_answers_weighed_by_the_retriever(tokenizer: WordPieceTokenizer) -> None:
    """Without regard to what the reader itself makes of passages: it prefers those that hold "who"."""
    wanted, divisor = {"rome": 4.0, "paris": 4.5, "cafe": 3.0}, 2.5
    scores = PassageScoreConfig(passage_score_use="marginal", passage_score_divisor=divisor)
    texts = ("of of Rome who", "Paris of", "of rome", "ROME of of of", "", "cafe of")
    questions = [
        dataclasses.replace(asked(*texts), scores=(1.0, 4.0, 2.5, 2.0, 9.0, 0.5)),
        dataclasses.replace(asked(*texts), scores=(1.0, 4.0, -2.5, 1.0, 0.0, 0.5)),
        dataclasses.replace(asked(*texts), scores=()),
        dataclasses.replace(asked("who", texts[5]), scores=(-30.0, 4.0)),
    ]
    settings: dict[str, Any] = {"passage_scores": scores, "max_answer_length": 1}
    found = answerer(tokenizer, wanted, {"who": 9.0}, **settings).answer(questions)
    expected = [_brute_force(question, wanted, divisor) for question in questions]
    assert [(answer.text, answer.passage) for answer in found] == [(text, place) for text, _, place in expected]
    assert [answer.score for answer in found] == pytest.approx([score for _, score, _ in expected], abs=1e-5)
    # passages that agree win over a likelier one, and only then
    assert [answer.text for answer in found] == ["rome", "Paris", "rome", "cafe"]

    likeliest = answerer(tokenizer, wanted, {"who": 9.0}, answer_choice="passage", **settings).answer(questions)
    assert [answer.passage for answer in likeliest] == [1, 1, 0, 1]
    own = answerer(tokenizer, wanted, {"who": 9.0}, max_answer_length=1).answer(questions)
    assert [answer.passage for answer in own] == [0, 0, 0, 0]
