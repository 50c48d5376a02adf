"""Masked sentences: nothing is lost and nothing forged, draws are named by their place, and no passage that holds the
sentence is a candidate."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_retrieval.data.examples.masked_sentences import MaskedSentences, MaskedSentencesConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.salient.builder import SpanBuilderConfig, build_salient_spans
from megatron_retrieval.data.salient.masking import TextMasker, occurrences
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.errors import DataError
from megatron_retrieval.testing.tiny_sentencepiece import SENTENCES, write_sentencepiece
from megatron_retrieval.tokenizers.sentencepiece import SentencePieceTokenizer
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

WORDS = "the capital of france is paris and italy rome ##s who wrote play prince denmark a river runs city 1889 , ?"
TEXTS = [*SENTENCES[:3], "[MASK] and <extra_id_0>  of Paris, Paris's Rome", "Rome, Paris and Denmarks 1889"]
FORMAT = TextFormatConfig(query_seq_length=20, retriever_seq_length=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evidence in windows that overlap, and the spans of its sentences: all of their words."""
    folder = tmp_path_factory.mktemp("masked")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), "stands", "in", "room", "box"]
    numbers = [f"n{number}" for number in range(30)]
    (folder / "vocab.txt").write_text("\n".join([*vocab, *numbers]) + "\n")
    write_sentencepiece(folder / "spiece.model", [*SENTENCES, *TEXTS, *numbers], vocab_size=60)
    sentences = [f"the box of {one} stands in the room of {numbers[-1 - n]}" for n, one in enumerate(numbers)]
    passages = [
        {"id": f"p{n}", "title": "", "text": " ".join(sentences[n : n + 2] + sentences[:1] * (n == 7))}
        for n in range(29)
    ]
    (folder / "passages.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    settings = {"input": (str(folder / "passages.jsonl"),), "vocab_file": str(folder / "vocab.txt")}
    build_evidence(EvidenceBuilderConfig(output=str(folder / "evidence"), **settings))  # type: ignore[arg-type]
    lines = []
    for number, sentence in enumerate(sentences):
        own = [sentence.index(f" {word} ") + 1 for word in (numbers[number], "room")] + [sentence.rindex(" ") + 1]
        spans = [[start, start + len(sentence[start:].split()[0]), "NAME"] for start in own]
        lines.append(json.dumps({"passage_id": f"p{min(number, 28)}", "sentence": sentence, "spans": spans}) + "\n")
    (folder / "in.jsonl").write_text("".join(lines))
    config = SpanBuilderConfig(
        evidence=folder / "evidence", input=(str(folder / "in.jsonl"),), output=str(folder / "spans"), tagger="import"
    )
    build_salient_spans(config)
    return folder


def _source(folder: Path, *, seed: int = 1, text_format: TextFormatConfig = FORMAT, **settings: Any) -> MaskedSentences:
    evidence = EvidenceStore(folder / "evidence")
    return MaskedSentences(
        MaskedSentencesConfig(spans=folder / "spans", **settings),
        evidence,
        retriever=evidence.vocabulary,
        reader=SentencePieceTokenizer(folder / "spiece.model"),
        text_format=text_format,
        question_seq_length=64,
        seed=seed,
    )


@pytest.mark.parametrize("kind", ["WordPiece", "SentencePiece"])
def test_with_what_is_hidden_in_its_place_a_sentence_is_whole_again(folder: Path, kind: str) -> None:
    files = {"WordPiece": WordPieceTokenizer, "SentencePiece": SentencePieceTokenizer}
    vocabulary: Vocabulary = files[kind](folder / ("vocab.txt" if kind == "WordPiece" else "spiece.model"))
    masker, draw, num_masked = TextMasker(vocabulary), random.Random(3), 0
    for text in TEXTS:
        (whole,) = vocabulary.encode([text])
        assert not set(whole) & {vocabulary.special.mask, *vocabulary.sentinel_ids}
        for _ in range(60):
            start, end = sorted(draw.sample(range(len(text) + 1), 2))
            masked = masker.mask(text, [[(start, end)]])
            if masked is None:
                continue
            num_masked += 1
            (mask,) = masker.masks(0, 1)
            place = masked.ids.index(mask)
            assert masked.ids[:place] + masked.spans[0] + masked.ids[place + 1 :] == whole
            assert masked.end == place + 1
            assert masked.ids.count(mask) == 1
    assert num_masked > 20


def test_the_string_is_hidden_wherever_it_stands(folder: Path) -> None:
    text = "Rome and Paris, Romes, Rome ?"
    assert [text[slice(*found)] for found in occurrences(text, 0, 4)] == ["Rome", "Rome"]
    vocabulary = WordPieceTokenizer(folder / "vocab.txt")
    masked = TextMasker(vocabulary).mask(text, [occurrences(text, 0, 4), occurrences(text, 9, 14)])
    assert masked is not None
    mask, (whole,) = vocabulary.special.mask, vocabulary.encode([text])
    assert masked.ids == [mask if number in (0, 2, len(whole) - 2) else own for number, own in enumerate(whole)]
    assert TextMasker(vocabulary).target(masked) == [whole[0], mask, whole[2]]
    each = TextMasker(vocabulary, each_token=True).mask("Romes and Paris", [[(0, 5)]])
    assert each is not None
    assert each.ids[:2] == [mask, mask]
    t5 = SentencePieceTokenizer(folder / "spiece.model")
    sentinels, several = t5.sentinel_ids, TextMasker(t5).mask(text, [[(9, 14)], [(0, 4)]])
    assert several is not None
    written = TextMasker(t5).target(several)
    assert written == [sentinels[0], *several.spans[0], sentinels[1], *several.spans[1]]


def test_draws_are_named_by_their_place_whatever_the_number_of_ranks(folder: Path) -> None:
    source, order = _source(folder), list(range(29, -1, -1))
    whole = source.batch(order, 3, 40)
    parts = [source.batch(order, 3, 40, rank, 4) for rank in range(4)]
    assert torch.equal(whole.retriever_queries.ids, torch.cat([part.retriever_queries.ids for part in parts]))
    found = [row.tolist() for part in parts for row in map(part.targets.__getitem__, range(len(part)))]
    assert found == [whole.targets[row].tolist() for row in range(30)]
    again, later = _source(folder).batch(order, 3, 40), source.batch(order, 4, 40)
    other = _source(folder, seed=2).batch(order, 3, 40)
    assert torch.equal(again.retriever_queries.ids, whole.retriever_queries.ids)
    for changed in (later, other):
        assert not torch.equal(changed.retriever_queries.ids, whole.retriever_queries.ids)
    assert source.batch(order[:1], 0, 0, 1, 2).is_filler


def test_no_candidate_holds_the_sentence(folder: Path) -> None:
    """A thousand draws against a plain search of the texts; the own passage is among the excluded."""
    source, evidence = _source(folder), EvidenceStore(folder / "evidence")
    texts = [passage.text for passage in evidence.passages(range(len(evidence)))]
    draw, num_drawn, more = random.Random(4), 0, 0
    for epoch in range(40):
        rows = draw.choices(range(len(source)), k=25)
        for row, excluded in zip(rows, source.batch(rows, epoch, 0).excluded_rows.tolist(), strict=True):
            sentence = source.store.sentence(row)[0]
            holding = {place for place, text in enumerate(texts) if f" {sentence} " in f" {text} "}
            assert holding == {place for place in excluded if place >= 0}
            assert source.store.passage(row) == excluded[0]
            num_drawn, more = num_drawn + 1, more + (len(holding) > 1)
    assert num_drawn == 1000
    assert more > 500  # the windows overlap


def test_a_mask_that_retriever_or_reader_would_not_see_is_not_drawn(folder: Path) -> None:
    short = _source(folder, text_format=TextFormatConfig(query_seq_length=7, retriever_seq_length=40))
    mask = short.store and EvidenceStore(folder / "evidence").special.mask
    for epoch in range(3):
        queries = short.batch(range(30), epoch, 0).retriever_queries.ids
        assert ((queries == mask).sum(1) == 1).all()
    tiny = _source(folder, text_format=TextFormatConfig(query_seq_length=4, retriever_seq_length=40))
    with pytest.raises(DataError, match="fits both vocabularies and lengths"):
        tiny.batch([0], 0, 0)


def test_all_spans_at_once(folder: Path) -> None:
    source = _source(folder, masked_spans="all")
    drawn = source.draw(3, 0, 0)
    assert len(drawn.spans) == 3
    sentinels = SentencePieceTokenizer(folder / "spiece.model").sentinel_ids
    batch = source.batch([3], 0, 0)
    assert [number for number in batch.reader_questions[0].tolist() if number in sentinels] == list(sentinels[:3])
    assert batch.targets[0][0] == sentinels[0]
    assert len(batch.answers[0]) == 3
    assert batch.groups is not None
    assert np.array_equal(batch.questions(torch.tensor([0])).groups, batch.groups)  # type: ignore[arg-type]
