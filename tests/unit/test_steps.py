"""Texts of a batch: encoded once each, and in batches of like length."""

from __future__ import annotations

import torch

from megatron_retrieval.retrieval.encode_batches import encode_sequences
from megatron_retrieval.training.steps.step import distinct_texts, evaluation_mode
from megatron_retrieval.types.tokens import TokenBatch, by_length, in_given_order


def test_equal_texts_share_a_place_whatever_their_padding() -> None:
    ids = torch.tensor([[5, 6, 0], [5, 6, 7], [5, 6, 9], [5, 6, 7], [8, 0, 0]])
    texts, places = distinct_texts(TokenBatch(ids, torch.tensor([2, 3, 2, 3, 1])))
    assert len(texts) == 3
    assert places[0] == places[2]
    assert places[1] == places[3]
    assert len(set(places.tolist())) == 3
    for row, place in enumerate(places.tolist()):
        length = int(texts.lengths[place])
        assert texts.ids[place, :length].tolist() == ids[row, :length].tolist()


def test_batches_cover_all_rows_in_order_of_length_and_lead_back() -> None:
    lengths = torch.tensor([9, 2, 7, 2, 5])
    for longest_first, expected in ((False, [[1, 3], [4, 2], [0]]), (True, [[0, 2], [4, 1], [3]])):
        batches = by_length(lengths, 2, longest_first=longest_first)
        assert [batch.tolist() for batch in batches] == expected
        found = torch.cat([lengths[batch, None] for batch in batches])
        assert in_given_order(found, batches)[:, 0].tolist() == lengths.tolist()
    assert [batch.tolist() for batch in by_length(lengths[:0], 2)] == [[]]


def test_vectors_come_in_the_order_of_the_sequences() -> None:
    tokens = TokenBatch(torch.arange(15).view(5, 3), torch.tensor([2, 3, 1, 3, 2]))
    vectors = encode_sequences(tokens, lambda batch: batch.ids[:, :1].float(), 2, torch.device("cpu"))
    assert vectors[:, 0].tolist() == tokens.ids[:, 0].tolist()


def test_a_model_comes_out_of_evaluation_in_the_mode_in_which_it_was() -> None:
    model = torch.nn.Dropout()
    for mode in (True, False):
        model.train(mode)
        with evaluation_mode(model):
            assert not model.training
        assert model.training == mode
