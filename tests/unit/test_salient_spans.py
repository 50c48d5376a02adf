"""Salient spans as data: what is found, what is left out and counted, which passages hold a sentence, and a build that
is stopped."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_retrieval.data.salient import builder, wordings
from megatron_retrieval.data.salient.builder import SpanBuilderConfig, build_salient_spans
from megatron_retrieval.data.salient.shown import masked_words, shown_sentences
from megatron_retrieval.data.salient.spans import DATE, Span, find_dates, longest
from megatron_retrieval.data.salient.taggers import TAGGERS, RulesTagger, TitledSentences
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.data.stores.ragged import Ragged
from megatron_retrieval.data.stores.salient import SpanStore
from megatron_retrieval.errors import ConfigError, DataError, MismatchError
from megatron_retrieval.testing.tiny_byte_bpe import write_roberta_bpe
from megatron_retrieval.utils import partial_folder

WORDS = "the a of in river flows through city was built by since 1889 may ada lovelace marie curie paris rome big ."
SENTENCES = [
    "The river flows through Paris since 1889 .",
    "Marie Curie was built in the big city of Rome in May 1889 .",
    "The big city was built by Ada Lovelace of Rome .",
]


def _write_evidence(folder: Path, texts: list[str], vocab_file: Path | None = None) -> Path:
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    records = [{"id": f"p{n}", "title": "t", "text": text} for n, text in enumerate(texts)]
    (folder / "passages.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {"input": (str(folder / "passages.jsonl"),), "output": str(folder / "evidence")}
    vocab_file = vocab_file or folder / "vocab.txt"
    build_evidence(EvidenceBuilderConfig(vocab_file=str(vocab_file), **settings))  # type: ignore[arg-type]
    return folder / "evidence"


def _build(folder: Path, name: str = "spans", **settings: Any) -> SpanStore:
    build_salient_spans(SpanBuilderConfig(evidence=folder / "evidence", output=str(folder / name), **settings))
    return SpanStore(folder / name)


@pytest.mark.parametrize(
    ("text", "dates"),
    [
        ("on 5 May 1990 and May 5, 1990", ["5 May 1990", "May 5, 1990"]),
        ("in May 1990, in December", ["May 1990", "December"]),
        ("the 1990s and 2099, not 2100 or 999", ["1990s", "2099"]),
        ("Mar. 3rd, 2001; 3rd of March", ["Mar. 3rd, 2001", "3rd of March"]),
        ("1,500 men, $1500, 1500.5 or 1500 %, mayors", []),
    ],
)
def test_dates(text: str, dates: list[str]) -> None:
    assert [text[span.start : span.end] for span in find_dates(text)] == dates


def test_of_overlapping_spans_the_longest_stays() -> None:
    named, dated = [Span(0, 4, "ORG"), Span(10, 14, "GPE")], [Span(2, 9, DATE), Span(10, 14, DATE)]
    assert longest(named, dated) == [Span(2, 9, DATE), Span(10, 14, "GPE")]


def test_the_first_word_of_a_sentence_is_a_name_only_if_it_is_one_elsewhere() -> None:
    text = TitledSentences("Rome", ("Rome stood.", "River and Bank of the Seine met J. K. Rowling.", "A River Bank."))
    (found,) = RulesTagger().tag([text], Counter())
    words = [[sentence[span.start : span.end] for span in own] for sentence, own in zip(text[1], found, strict=True)]
    assert words == [["Rome"], ["River", "Bank of the Seine", "J. K. Rowling"], ["River Bank"]]


def test_the_holders_of_a_sentence_are_all_and_no_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compared with a plain search, over texts of few words, with duplicates, windows, and sentences cut at 64."""
    monkeypatch.setattr(wordings, "_BLOCK", 1 << 8)
    draw = random.Random(5)
    stream = [draw.randrange(3) for _ in range(600)]
    texts = [stream[start : start + draw.randrange(60, 100)] for start in range(0, 500, 20)] + [stream[40:130]] * 2
    sentences = [text[start : start + draw.randrange(8, 80)] for text in texts for start in (0, 11)]
    sentences = [sentence for sentence in sentences if len(sentence) >= wordings.MIN_TOKENS]
    hashes = wordings.sentence_hashes(Ragged.from_sequences(sentences, np.uint16))
    tables = []
    for number in (0, 1):
        wordings.write_distinct(np.ascontiguousarray(hashes[:, number]), tmp_path / str(number))
        tables.append(np.fromfile(tmp_path / str(number), np.uint64))
    held, holding = wordings.find_held(Ragged.from_sequences(texts, np.uint16), *tables)
    pairs = set(zip(held.tolist(), holding.tolist(), strict=True))
    assert len(pairs) == len(held)

    def holds(text: list[int], sentence: list[int]) -> bool:
        words, wanted = (" " + " ".join(map(str, ids)) + " " for ids in (text, sentence[: wordings.MAX_TOKENS]))
        return wanted in words

    for sentence, own in zip(sentences, hashes[:, 1], strict=True):
        (wording,) = np.flatnonzero(tables[1] == own)
        found = {place for place in range(len(texts)) if (wording, place) in pairs}
        assert found == {place for place, text in enumerate(texts) if holds(text, sentence)}
        assert found


def test_holders_are_found_where_ids_depend_on_the_place(tmp_path: Path) -> None:
    """Byte-level BPE has other ids for a word behind a space than at the beginning, and for line breaks."""
    _, first, other = SENTENCES
    spaced = f"{other}\n\n{first.replace(' ', '  ')}\n"
    texts = [first, f"{other} {first}", f"{first} {other}", spaced, f"({first}", other]
    vocab_file = write_roberta_bpe(tmp_path / "bpe", [f" {text}" for text in SENTENCES], num_tokens=400)
    _write_evidence(tmp_path, texts, vocab_file)
    store = _build(tmp_path)
    ids = EvidenceStore(tmp_path / "evidence").vocabulary.encode([first, f" {first}"])
    assert ids[0] != ids[1][-len(ids[0]) :], "else the test tests nothing"
    holders = {store.sentence(row)[0]: set(store.holders(row).tolist()) for row in range(len(store))}
    assert holders[first] == {0, 1, 2, 3, 4}
    assert holders[other] == {1, 2, 3, 5}


def test_spans_are_built_with_what_holds_their_sentences(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write_evidence(tmp_path, [SENTENCES[0], f"{SENTENCES[1]} {SENTENCES[0]}", f"The river . {SENTENCES[2]}"])
    with caplog.at_level("INFO"):
        store = _build(tmp_path)
    texts = [store.sentence(row)[0] for row in range(len(store))]
    assert texts == [SENTENCES[0], SENTENCES[1], SENTENCES[0], SENTENCES[2]]
    assert [store.passage(row) for row in range(4)] == [0, 1, 1, 2]
    assert [store.holders(row).tolist() for row in range(4)] == [[0, 1], [1], [1, 0], [2]]
    assert "sentence: fewer than 8 tokens: 1" in caplog.text
    text, spans = store.sentence(1)
    found = [(text[span.start : span.end], span.type) for span in spans]
    assert found == [("Curie", "NAME"), ("Rome", "NAME"), ("May 1889", "DATE")]
    shown = list(shown_sentences(store, 2))
    assert all("[MASK]" in sentence and hidden not in sentence for sentence, _, hidden in shown)
    assert masked_words("Rome of Rome, Romes", Span(0, 4, "GPE")) == "[MASK] of [MASK], Romes"
    with pytest.raises(DataError, match="exists already"):
        _build(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(MismatchError, match="which of its passages hold the sentences is not known"):
        store.require_evidence(EvidenceStore(_write_evidence(other, SENTENCES[:1])))


def test_a_build_that_is_stopped_continues_to_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(2)
    _write_evidence(tmp_path, [" ".join(draw.choices(SENTENCES, k=3)) for _ in range(12)])
    monkeypatch.setattr(builder, "_CHUNK_TEXTS", 2)
    monkeypatch.setattr(partial_folder, "JOURNAL_SECONDS", 0.0)
    whole = _build(tmp_path, "whole")
    for stage, after in (("read", 3), ("searched", 1)):
        seen: list[int] = []

        def stopping(self: Any, sync: Any, seen: list[int] = seen, after: int = after) -> None:
            self.save(sync())
            seen.append(1)
            if len(seen) == after:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(partial_folder.PartialFolder, "save_if_due", stopping)
            if stage == "searched":
                seen += [1] * -6  # the chunks of the first stage are counted as well
                after += 6
            with pytest.raises(KeyboardInterrupt):
                _build(tmp_path, stage)
        continued = _build(tmp_path, stage)
        assert continued.fingerprint == whole.fingerprint
        assert (continued.folder / "manifest.json").read_text() == (whole.folder / "manifest.json").read_text()


@pytest.mark.parametrize(
    "stopped_in", ["data.salient.builder.write_manifest", "utils.partial_folder.PartialFolder.publish"]
)
def test_a_build_that_is_stopped_at_its_end_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_in: str
) -> None:
    """Then the files with which holders were found are gone, and there may be a manifest."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    _write_evidence(tmp_path, SENTENCES)
    whole = _build(tmp_path, "whole")
    with monkeypatch.context() as patch:
        patch.setattr(f"megatron_retrieval.{stopped_in}", stop)
        with pytest.raises(KeyboardInterrupt):
            _build(tmp_path)
    continued = _build(tmp_path)
    for file in whole.folder.iterdir():
        assert file.read_bytes() == (continued.folder / file.name).read_bytes(), file.name


def test_spans_of_others_are_read(tmp_path: Path) -> None:
    _write_evidence(tmp_path, SENTENCES[:2])
    place = SENTENCES[0].index("Paris")
    own = {"passage_id": "p0", "sentence": SENTENCES[0], "spans": [[place, place + 5, "GPE"]]}
    # the places of WordPiece tokens, without [CLS], the last one included
    theirs = {"text": SENTENCES[1], "bert_ent_pos": [[0, 1]]}
    (tmp_path / "in.jsonl").write_text(f"{json.dumps(own)}\n{json.dumps(theirs)}\n")
    store = _build(tmp_path, tagger="import", input=(str(tmp_path / "in.jsonl"),), dates=False)
    found = [[(text[s.start : s.end], s.type) for s in spans] for text, spans in map(store.sentence, range(2))]
    assert found == [[("Paris", "GPE")], [("Marie Curie", "NAME")]]
    assert [store.passage(row) for row in range(2)] == [0, -1]
    assert [store.holders(row).tolist() for row in range(2)] == [[0], [1]]
    own["spans"] = [[place, 99, "GPE"]]
    (tmp_path / "bad.jsonl").write_text(json.dumps(own) + "\n")
    with pytest.raises(DataError, match=r"bad.jsonl:1: the span \[\d+, 99, 'GPE'\] is no"):
        _build(tmp_path, "bad", tagger="import", input=(str(tmp_path / "bad.jsonl"),))
    assert not (tmp_path / "bad.partial").exists()
    with pytest.raises(ConfigError, match="give --input"):
        SpanBuilderConfig(evidence=tmp_path, output="x", tagger="import")


def test_spans_of_others_count_characters_of_the_sentence_as_it_is_written(tmp_path: Path) -> None:
    _write_evidence(tmp_path, SENTENCES)
    text = f" \t{SENTENCES[1].replace(' ', '  ')}\n"
    named = ["Marie  Curie", "  Rome", "1889  .\n"]
    spans = [[text.index(name), text.index(name) + len(name)] for name in named]
    (tmp_path / "in.jsonl").write_text(json.dumps({"sentence": text, "spans": spans}) + "\n")
    settings = {"tagger": "import", "input": (str(tmp_path / "in.jsonl"),), "dates": False}
    sentence, found = _build(tmp_path, **settings).sentence(0)
    assert sentence == SENTENCES[1]
    assert [sentence[span.start : span.end] for span in found] == ["Marie Curie", "Rome", "1889 ."]
    (tmp_path / "in.jsonl").write_text(json.dumps({"sentence": text, "spans": [[0, 2]]}) + "\n")
    with pytest.raises(DataError, match=r"the span \[0, 2\] is no"):
        _build(tmp_path, "bad", **settings)


def test_what_cannot_be_masked_is_left_out_and_counted(tmp_path: Path) -> None:
    _write_evidence(tmp_path, SENTENCES)
    name = "Ada Lovelace of Rome in the big city of Paris"
    long, whole = f"{name} was built by Marie Curie .", name
    lines = [{"sentence": long, "spans": [[0, len(name), "PERSON"], [0, 3, "CARDINAL"], [1, 3, "ORG"]]}]
    lines += [{"sentence": whole, "spans": [[0, len(whole), "ORG"]]}, {"sentence": "Rome", "spans": [[0, 4, "GPE"]]}]
    lines += [{"sentence": SENTENCES[0], "spans": [[24, 29, "GPE"]]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"tagger": "import", "input": (str(tmp_path / "in.jsonl"),), "dates": False}
    store = _build(tmp_path, **settings, max_span_tokens=9)
    census = json.loads((store.folder / "manifest.json").read_text())["census"]
    expected = {"span: type left out": 1, "span: more than 9 tokens": 2, "sentence: fewer than 8 tokens": 1}
    assert {reason: census[reason] for reason in expected} == expected
    wider = _build(tmp_path, "wider", **settings, max_span_tokens=10)
    assert json.loads((wider.folder / "manifest.json").read_text())["census"]["span: the whole sentence"] == 1
    alone = {"sentence": SENTENCES[0], "spans": [[25, 29, "GPE"]]}
    (tmp_path / "in.jsonl").write_text(json.dumps(alone) + "\n")
    with pytest.raises(DataError, match="no sentence has a span that can be masked"):
        _build(tmp_path, "none", **settings)


def test_without_spacy_a_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(ConfigError, match=r"megatron-retrieval\[spans\]"):
        TAGGERS["spacy"].open("a-pipeline")
    with pytest.raises(ConfigError, match="needs --tagger-model"):
        TAGGERS["spacy"].open(None)
