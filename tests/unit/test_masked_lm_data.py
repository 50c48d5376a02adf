"""Which tokens are hidden and behind what; sequences of a corpus, independent of ranks and restarts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_retrieval.data.examples.masked_lm import NOT_PREDICTED, MaskedLMDataConfig, MaskedLMDataset, TokenMasker
from megatron_retrieval.data.layouts.blocks import BlockConfig, split_documents
from megatron_retrieval.data.stores.corpus import CorpusStore
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.testing.tiny import write_tiny_corpus
from megatron_retrieval.tokenizers.wordpiece import SpecialIds, WordPieceTokenizer
from megatron_retrieval.types.pretraining import MaskedBatch

SPECIAL = SpecialIds(begin=1, end=2, pad=0, mask=3)
VOCAB_SIZE = 1000


def masked(ids: np.ndarray, masker: TokenMasker, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    hidden = ids.copy()
    labels = masker.mask(hidden, np.random.default_rng(number))
    return hidden, labels


def sequence(length: int) -> np.ndarray:
    """[CLS] title [SEP] text [SEP] of `length` tokens, none of them special but those."""
    ids = np.random.default_rng(length).integers(10, VOCAB_SIZE, length)
    ids[[0, length // 3, -1]] = SPECIAL.begin, SPECIAL.end, SPECIAL.end
    return ids


@pytest.mark.parametrize("length", [4, 10, 40, 512])
def test_the_share_is_predicted_and_no_special_token(length: int) -> None:
    ids = sequence(length)
    hidden, labels = masked(ids, TokenMasker(0.15, SPECIAL, VOCAB_SIZE))
    predicted = labels != NOT_PREDICTED
    assert predicted.sum() == max(1, round(0.15 * (length - 3)))
    assert not predicted[np.isin(ids, [SPECIAL.begin, SPECIAL.end])].any()
    assert (labels[predicted] == ids[predicted]).all()
    assert (hidden[~predicted] == ids[~predicted]).all()


def test_eight_of_ten_masked_one_random_one_kept() -> None:
    masker = TokenMasker(0.15, SPECIAL, VOCAB_SIZE)
    fates = np.zeros(3)
    for number in range(300):
        ids = sequence(200)
        hidden, labels = masked(ids, masker, number)
        here = labels != NOT_PREDICTED
        is_mask, is_kept = hidden[here] == SPECIAL.mask, hidden[here] == ids[here]
        fates += [is_mask.sum(), (~is_mask & ~is_kept).sum(), is_kept.sum()]
    # 9,000 tokens: three standard deviations are 0.013 and 0.010
    assert fates / fates.sum() == pytest.approx([0.8, 0.1, 0.1], abs=0.014)


def test_whole_words_are_hidden_whole() -> None:
    continues = np.zeros(VOCAB_SIZE, np.bool_)
    continues[500:] = True
    masker = TokenMasker(0.15, SPECIAL, VOCAB_SIZE, continues)
    num_predicted = []
    for number in range(50):
        ids = sequence(300)
        _, labels = masked(ids, masker, number)
        predicted = labels != NOT_PREDICTED
        num_predicted.append(predicted.sum())
        starts = ~continues[ids] | np.isin(np.roll(ids, 1), [SPECIAL.begin, SPECIAL.end])
        starts |= np.isin(ids, [SPECIAL.begin, SPECIAL.end])
        for word in np.split(np.arange(len(ids)), np.flatnonzero(starts)[1:]):
            assert predicted[word].all() or not predicted[word].any()
    wanted = round(0.15 * 297)
    assert max(num_predicted) <= wanted
    assert np.mean(num_predicted) > 0.9 * wanted


def test_nothing_to_predict_in_an_empty_frame() -> None:
    _, labels = masked(np.array([SPECIAL.begin, SPECIAL.end]), TokenMasker(0.15, SPECIAL, VOCAB_SIZE))
    assert (labels == NOT_PREDICTED).all()


def test_tokens_that_continue_a_word(tmp_path: Path) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "#", "##s"]
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary))
    continues = WordPieceTokenizer(tmp_path / "vocab.txt").continues_word()
    assert [vocabulary[place] for place in np.flatnonzero(continues)] == ["##ing", "##s"]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_share_out_of_range(share: float) -> None:
    with pytest.raises(ConfigError, match=f"--mask-prob {share}: must be above 0 and below 1"):
        MaskedLMDataConfig(blocks=BlockConfig(data_path="x"), mask_prob=share)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusStore:
    return CorpusStore(write_tiny_corpus(tmp_path_factory.mktemp("corpus")))


def dataset(corpus: CorpusStore, documents: Rows | None = None, **settings: bool) -> MaskedLMDataset:
    """Of all documents, unless told; two or three sequences each."""
    blocks = BlockConfig(data_path=str(corpus.folder), **settings)
    chosen = np.arange(len(corpus)) if documents is None else documents
    return MaskedLMDataset(MaskedLMDataConfig(blocks=blocks, seq_length=32, mask_prob=0.3), corpus, chosen, seed=5)


Row = tuple[list[int], list[int]]


def rows(batch: MaskedBatch) -> list[Row]:
    """Ids and labels of every sequence, without padding."""
    lengths = batch.tokens.lengths.tolist()
    parts = zip(batch.tokens.ids.tolist(), batch.labels.tolist(), lengths, strict=True)
    return [(ids[:length], labels[:length]) for ids, labels, length in parts]


def original(row: Row) -> list[int]:
    """The sequence before it was masked."""
    return [token if label == NOT_PREDICTED else label for token, label in zip(*row, strict=True)]


@pytest.mark.parametrize("num_sequences", [12, 7, 1])
def test_sequences_do_not_depend_on_ranks_or_restarts(corpus: CorpusStore, num_sequences: int) -> None:
    indices = np.random.default_rng(1).permutation(40)[:num_sequences].tolist()
    single = rows(dataset(corpus).batch(indices, 2, 24))
    assert len(single) == num_sequences
    filler = ([corpus.special.begin, corpus.special.end], [NOT_PREDICTED] * 2)
    for num_ranks in (2, 4):
        anew = dataset(corpus)
        shares = [rows(anew.batch(indices, 2, 24, rank, num_ranks)) for rank in range(num_ranks)]
        assert len({len(share) for share in shares}) == 1
        together = [row for share in shares for row in share]
        assert together[:num_sequences] == single
        assert all(row == filler for row in together[num_sequences:])


def test_epochs_hide_other_tokens_of_the_same_text(corpus: CorpusStore) -> None:
    sequences = dataset(corpus)
    first, again, later = (sequences.batch(range(40), epoch, 0) for epoch in (0, 0, 1))
    assert torch.equal(first.tokens.ids, again.tokens.ids)
    assert torch.equal(first.labels, again.labels)
    assert (first.labels != later.labels).any(1).float().mean() > 0.9
    assert [original(row) for row in rows(first)] == [original(row) for row in rows(later)]
    assert rows(sequences.batch(range(30, 40), 0, 30)) == rows(first)[30:]


def test_a_sequence_is_title_and_sentences(corpus: CorpusStore) -> None:
    special, title, sentence = corpus.special, corpus.titles[0].tolist(), corpus.sentences[0].tolist()
    start = [special.begin, *title, special.end, *sentence]
    assert original(rows(dataset(corpus).batch([0], 0, 0))[0])[: len(start)] == start
    untitled = original(rows(dataset(corpus, use_titles=False).batch([0], 0, 0))[0])
    assert untitled[: 1 + len(sentence)] == [special.begin, *sentence]


def test_held_out_documents_are_not_trained_on(corpus: CorpusStore) -> None:
    train, held_out = split_documents(len(corpus), 0.3, seed=5)
    assert len(train) > len(held_out) > 0
    keys = {int(corpus.sentences[first][3]): number for number, first in enumerate(corpus.documents[:-1])}
    assert len(keys) == len(corpus)  # the word that tells a document from the others
    for documents in (train, held_out):
        sequences = dataset(corpus, documents)
        seen = {token for row in rows(sequences.batch(range(len(sequences)), 0, 0)) for token in original(row)}
        assert {keys[token] for token in seen & keys.keys()} == set(documents.tolist())


def test_no_text_is_explained(corpus: CorpusStore) -> None:
    with pytest.raises(DataError, match="there is no text to train on"):
        dataset(corpus, np.empty(0, np.int64))
