"""Which tokens are hidden, and behind what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_retrieval.data.blocks import BlockConfig
from megatron_retrieval.data.masked_lm import NOT_PREDICTED, MaskedLMDataConfig, TokenMasker
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.tokenizers import SpecialIds, WordPieceTokenizer

SPECIAL = SpecialIds(cls=1, sep=2, pad=0, mask=3)
VOCAB_SIZE = 1000


def masked(ids: np.ndarray, masker: TokenMasker, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    hidden = ids.copy()
    labels = masker.mask(hidden, np.random.default_rng(number))
    return hidden, labels


def sequence(length: int) -> np.ndarray:
    """[CLS] title [SEP] text [SEP] of `length` tokens, none of them special but those."""
    ids = np.random.default_rng(length).integers(10, VOCAB_SIZE, length)
    ids[[0, length // 3, -1]] = SPECIAL.cls, SPECIAL.sep, SPECIAL.sep
    return ids


@pytest.mark.parametrize("length", [4, 10, 63, 512])
def test_the_share_is_predicted_and_no_special_token(length: int) -> None:
    ids = sequence(length)
    hidden, labels = masked(ids, TokenMasker(0.15, SPECIAL, VOCAB_SIZE))
    predicted = labels != NOT_PREDICTED
    assert predicted.sum() == max(1, round(0.15 * (length - 3)))
    assert not predicted[np.isin(ids, [SPECIAL.cls, SPECIAL.sep])].any()
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
        starts = ~continues[ids] | np.isin(np.roll(ids, 1), [SPECIAL.cls, SPECIAL.sep])
        starts |= np.isin(ids, [SPECIAL.cls, SPECIAL.sep])
        for word in np.split(np.arange(len(ids)), np.flatnonzero(starts)[1:]):
            assert predicted[word].all() or not predicted[word].any()
    wanted = round(0.15 * 297)
    assert max(num_predicted) <= wanted
    assert np.mean(num_predicted) > 0.9 * wanted


def test_nothing_to_predict_in_an_empty_frame() -> None:
    _, labels = masked(np.array([SPECIAL.cls, SPECIAL.sep]), TokenMasker(0.15, SPECIAL, VOCAB_SIZE))
    assert (labels == NOT_PREDICTED).all()


def test_tokens_that_continue_a_word(tmp_path: Path) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "#", "##s"]
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary))
    continues = WordPieceTokenizer(tmp_path / "vocab.txt").continues_word()
    assert [vocabulary[place] for place in np.flatnonzero(continues)] == ["##ing", "##s"]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_share_out_of_range(share: float) -> None:
    with pytest.raises(ConfigError, match="--mask-prob must be above 0 and below 1"):
        MaskedLMDataConfig(blocks=BlockConfig(data_path="x"), mask_prob=share)
