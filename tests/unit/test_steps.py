"""Texts of a batch: encoded once each, and in chunks of like length."""

from __future__ import annotations

import torch

from megatron_retrieval.training.steps.step import distinct_texts, length_sorted_chunks
from megatron_retrieval.types.tokens import TokenBatch


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


def test_chunks_cover_all_rows_in_order_of_length() -> None:
    lengths = torch.tensor([9, 2, 7, 2, 5])
    chunks = list(length_sorted_chunks(TokenBatch(torch.zeros(5, 9, dtype=torch.int64), lengths), 2))
    assert [chunk.tolist() for chunk in chunks] == [[1, 3], [4, 2], [0]]
