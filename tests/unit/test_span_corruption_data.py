"""Which tokens are taken out, that nothing is lost by it, and texts of a corpus independent of ranks and restarts."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_retrieval.data.examples.span_corruption import (
    SpanCorruptionDataConfig,
    SpanCorruptionDataset,
    corrupt,
    random_spans,
)
from megatron_retrieval.data.layouts.blocks import BlockConfig, split_documents
from megatron_retrieval.data.stores.corpus import CorpusStore
from megatron_retrieval.data.stores.corpus_builder import CorpusBuilderConfig, build_corpus
from megatron_retrieval.data.stores.ragged import Ragged, Rows, to_offsets
from megatron_retrieval.errors import ConfigError, DataError, MismatchError
from megatron_retrieval.testing.tiny import write_tiny_corpus
from megatron_retrieval.types.pretraining import CorruptedBatch

SENTINELS = np.arange(999, 899, -1)
Pair = tuple[list[int], list[int]]


def settings(**changed: object) -> SpanCorruptionDataConfig:
    return SpanCorruptionDataConfig(blocks=BlockConfig(data_path="x"), **changed)  # type: ignore[arg-type]


def filled(with_gaps: list[int], target: list[int], sentinels: set[int]) -> list[int]:
    """The text again: behind each sentinel of the target stands what its gap held."""
    spans: dict[int, list[int]] = {}
    for token in target:
        if token in sentinels:
            assert token not in spans
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    assert list(spans) == [token for token in with_gaps if token in sentinels]
    assert all(spans.values())
    return list(chain.from_iterable(spans.get(token, [token]) for token in with_gaps))


def test_lengths_of_the_paper() -> None:
    """512 tokens to read and 114 to write are 568 of text."""
    config = settings()
    assert config.text_length == 568
    assert config.noise_of(568) == (85, 28)
    assert settings(decoder_seq_length=114).text_length == 568
    assert settings(decoder_seq_length=113).text_length < 568


@pytest.mark.parametrize("seq_length", [10, 33, 100])
@pytest.mark.parametrize("decoder_seq_length", [None, 12])
@pytest.mark.parametrize(("mask_prob", "mean"), [(0.15, 3.0), (0.5, 1.0), (0.9, 2.5)])
def test_texts_are_as_long_as_fits(
    seq_length: int, decoder_seq_length: int | None, mask_prob: float, mean: float
) -> None:
    limits = {"seq_length": seq_length, "decoder_seq_length": decoder_seq_length}
    config = settings(mask_prob=mask_prob, mean_noise_span_length=mean, **limits)

    def fits(num_tokens: int) -> bool:
        num_noise, num_spans = config.noise_of(num_tokens)
        to_read, to_write = num_tokens - num_noise + num_spans + 1, num_noise + num_spans + 1
        return to_read <= seq_length and (decoder_seq_length is None or to_write <= decoder_seq_length)

    longest = config.text_length
    assert [fits(number) for number in range(2, longest + 50)] == [True] * (longest - 1) + [False] * 49


@pytest.mark.parametrize("length", [2, 3, 10, 63, 568])
@pytest.mark.parametrize(("mask_prob", "mean"), [(0.15, 3.0), (0.5, 1.0), (0.97, 3.0)])
def test_share_and_number_of_spans(length: int, mask_prob: float, mean: float) -> None:
    config = settings(mask_prob=mask_prob, mean_noise_span_length=mean, seq_length=40)
    num_noise, num_spans = config.noise_of(length)
    assert num_noise == np.clip(round(mask_prob * length), 1, length - 1)
    assert num_spans == min(max(1, round(num_noise / mean)), length - num_noise)
    is_noise = random_spans(length, num_noise, num_spans, np.random.default_rng(length))
    assert is_noise.shape == (length,)
    assert is_noise.sum() == num_noise
    assert (np.diff(is_noise.astype(int)) == 1).sum() == num_spans
    assert not is_noise[0]


def test_all_divisions_are_equally_likely() -> None:
    """Of 5 tokens that stay and 4 of noise into 3 spans each: 6 times 3 masks."""
    random, num_draws = np.random.default_rng(3), 9000
    drawn = Counter(random_spans(9, 4, 3, random).tobytes() for _ in range(num_draws))
    assert len(drawn) == 18
    # expected 500 with a standard deviation of 22
    assert max(drawn.values()) < 500 + 4 * 22
    assert min(drawn.values()) > 500 - 4 * 22


def test_texts_in_the_hand_made_case() -> None:
    texts = Ragged(np.arange(10, 21, dtype=np.uint16), np.array([0, 6, 6, 11]))
    is_noise = np.array([0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 1], np.bool_)
    with_gaps, targets = corrupt(texts, is_noise, SENTINELS)
    assert [with_gaps[row].tolist() for row in range(3)] == [[10, 999, 13, 14, 998], [], [16, 17, 999, 19, 998]]
    assert [targets[row].tolist() for row in range(3)] == [[999, 11, 12, 998, 15], [], [999, 18, 998, 20]]


def test_nothing_is_lost_and_nothing_is_told() -> None:
    """Every token stands on exactly one side, and together they are the text."""
    config, random = settings(), np.random.default_rng(4)
    lengths = random.integers(2, 568, 60)
    texts = Ragged(np.arange(1000, 1000 + lengths.sum()), to_offsets(lengths))
    is_noise = np.concatenate([random_spans(n, *config.noise_of(n), random) for n in lengths.tolist()])
    with_gaps, targets = corrupt(texts, is_noise, SENTINELS)
    for row in range(len(texts)):
        read, written = with_gaps[row].tolist(), targets[row].tolist()
        assert filled(read, written, set(SENTINELS.tolist())) == texts[row].tolist()
        num_noise, num_spans = config.noise_of(int(lengths[row]))
        assert (len(read), len(written)) == (lengths[row] - num_noise + num_spans, num_noise + num_spans)
        assert not {*read} & {*written} - {*SENTINELS.tolist()}


BAD_SETTINGS: list[tuple[dict[str, object], str]] = [
    ({"mask_prob": 1.0}, "--mask-prob 1.0: must be above 0 and below 1"),
    ({"mean_noise_span_length": 0.5}, "--mean-noise-span-length 0.5: must be at least 1"),
    ({"seq_length": 6}, "--seq-length 6 leaves room for texts of 5 tokens"),
    ({"decoder_seq_length": 2}, "--seq-length 512 with --decoder-seq-length 2 leaves room for texts of 1 tokens"),
    ({"seq_length": 2048}, "texts of 2274 tokens with 114 gaps, and a T5 has names for 100; lower it or --mask-prob"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_SETTINGS)
def test_settings_that_cannot_be(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(**changed)


def test_as_many_spans_as_there_are_names() -> None:
    config = settings(seq_length=1801)
    assert (config.text_length, config.noise_of(config.text_length)) == (2000, (300, 100))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    return CorpusStore(write_tiny_corpus(tmp_path_factory.mktemp("corpus"), sentencepiece=True))


def dataset(corpus: CorpusStore, documents: Rows | None = None, **changed: bool) -> SpanCorruptionDataset:
    """Of all documents, unless told; three texts each."""
    config = SpanCorruptionDataConfig(
        blocks=BlockConfig(data_path=str(corpus.folder), **changed), seq_length=32, mask_prob=0.3
    )
    return SpanCorruptionDataset(config, corpus, np.arange(len(corpus)) if documents is None else documents, seed=5)


def pairs(batch: CorruptedBatch) -> list[Pair]:
    """Both sides of every text, without padding."""
    lengths = batch.tokens.lengths.tolist()
    read = [ids[:length] for ids, length in zip(batch.tokens.ids.tolist(), lengths, strict=True)]
    written = [[label for label in labels if label >= 0] for labels in batch.labels.tolist()]
    return list(zip(read, written, strict=True))


def original(corpus: CorpusStore, pair: Pair) -> list[int]:
    """The text before spans were taken out; both sides end with their end tokens."""
    tokenizer = corpus.vocabulary
    assert [side[-1] for side in pair] == [tokenizer.special.end] * 2
    return filled(pair[0][:-1], pair[1][:-1], set(tokenizer.sentinel_ids))


@pytest.mark.parametrize("num_texts", [12, 7, 1])
def test_texts_do_not_depend_on_ranks_or_restarts(corpus: CorpusStore, num_texts: int) -> None:
    indices = np.random.default_rng(1).permutation(40)[:num_texts].tolist()
    single = pairs(dataset(corpus).batch(indices, 2, 24))
    assert len(single) == num_texts
    for num_ranks in (2, 4):
        anew = dataset(corpus)
        shares = [pairs(anew.batch(indices, 2, 24, rank, num_ranks)) for rank in range(num_ranks)]
        assert len({len(share) for share in shares}) == 1
        together = [pair for share in shares for pair in share]
        assert together[:num_texts] == single
        assert all(pair == ([corpus.vocabulary.special.end], []) for pair in together[num_texts:])


def test_epochs_take_other_spans_out_of_the_same_text(corpus: CorpusStore) -> None:
    texts = dataset(corpus)
    first, again, later = (texts.batch(range(40), epoch, 0) for epoch in (0, 0, 1))
    assert torch.equal(first.tokens.ids, again.tokens.ids)
    assert torch.equal(first.labels, again.labels)
    assert np.mean([pair != other for pair, other in zip(pairs(first), pairs(later), strict=True)]) > 0.9
    assert [original(corpus, pair) for pair in pairs(first)] == [original(corpus, pair) for pair in pairs(later)]
    assert pairs(texts.batch(range(30, 40), 0, 30)) == pairs(first)[30:]


@pytest.mark.parametrize("use_titles", [True, False])
def test_texts_are_titles_and_sentences_of_one_document(corpus: CorpusStore, use_titles: bool) -> None:
    """All of its sentences, in order; no text goes over into the next document."""
    texts = dataset(corpus, np.array([3]), use_titles=use_titles)
    found = [original(corpus, pair) for pair in pairs(texts.batch(range(len(texts)), 0, 0))]
    title = corpus.titles[3].tolist() if use_titles else []
    assert len(found) > 1
    assert all(text[: len(title)] == title for text in found)
    assert [token for text in found for token in text[len(title) :]] == corpus.sentences.values[
        corpus.sentences.offsets[corpus.documents[3]] : corpus.sentences.offsets[corpus.documents[4]]
    ].tolist()


def test_sequences_keep_to_their_lengths(corpus: CorpusStore) -> None:
    config = SpanCorruptionDataConfig(
        blocks=BlockConfig(data_path=str(corpus.folder)), seq_length=40, decoder_seq_length=8
    )
    texts = SpanCorruptionDataset(config, corpus, np.arange(len(corpus)), seed=5)
    batch = texts.batch(range(len(texts)), 0, 0)
    assert config.text_length == 36
    assert batch.tokens.ids.size(1) == 36 - 5 + 2 + 1
    assert batch.labels.size(1) == 8


def test_held_out_documents_are_not_trained_on(corpus: CorpusStore) -> None:
    train, held_out = split_documents(len(corpus), 0.3, seed=5)
    assert len(train) > len(held_out) > 0
    seen = []
    for documents in (train, held_out):
        texts = dataset(corpus, documents)
        seen.append({tuple(original(corpus, pair)) for pair in pairs(texts.batch(range(len(texts)), 0, 0))})
    assert not seen[0] & seen[1]


def test_a_text_of_one_token_is_left_out(corpus: CorpusStore, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The\n\nThe box.\n")
    model = str(corpus.folder / "spiece.model")
    build_corpus(
        CorpusBuilderConfig(input=(str(tmp_path / "text.txt"),), output=str(tmp_path / "corpus"), tokenizer_model=model)
    )
    short = CorpusStore(tmp_path / "corpus")
    assert short.sentences.lengths.tolist() == [1, 3]
    texts = dataset(short)
    assert len(texts) == 1
    assert original(short, pairs(texts.batch([0], 0, 0))[0]) == short.sentences[1].tolist()


def test_no_text_and_the_wrong_text_are_explained(corpus: CorpusStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no text to train on"):
        dataset(corpus, np.empty(0, np.int64))
    with pytest.raises(MismatchError, match="build the corpus with --tokenizer-model"):
        dataset(CorpusStore(write_tiny_corpus(tmp_path, num_documents=1)))
