"""A RETRO that writes token by token computes what it computes of the whole text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from test_retro_model import SHAPE, K, M, R, V, make_model
from torch import Tensor

from megatron_retrieval.models.generation import GenerationConfig, generate
from megatron_retrieval.models.retro import Retro
from megatron_retrieval.models.retro_generation import RetroSources, RetroState
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.types.neighbours import Neighbours
from megatron_retrieval.types.tokens import TokenBatch

NUM_TOKENS = 13


@pytest.fixture(scope="module")
def topology() -> Iterator[ProcessTopology]:
    with process_topology(ParallelConfig(device="cpu")) as found:
        yield found


def _retrieve(chunks: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens that follow from those of the chunk; none for some chunks, and one neighbour of two for others."""
    ids = (chunks.sum(1)[:, None, None] * torch.arange(1, K + 1)[:, None] + torch.arange(R) * 7) % V
    lengths = torch.stack([chunks[:, 0] % (R + 1), chunks[:, 1] % (R + 1)], 1)
    return ids, lengths.masked_fill((chunks[:, 2] % 4 == 0)[:, None], 0)


def _whole(model: Retro, ids: Tensor) -> Tensor:
    """[T, V] log-likelihoods of one text, read at once."""
    num_chunks = len(ids) // M
    starts = torch.arange(num_chunks) * M
    found = Neighbours(*_retrieve(ids[: num_chunks * M].view(-1, M)), torch.zeros_like(starts), starts)
    tokens = TokenBatch(ids[None], torch.tensor([len(ids)]))
    return model(tokens, torch.arange(len(ids)), found)[:, :V].log_softmax(1)


def _ids(num_texts: int) -> Tensor:
    return torch.randint(V, (num_texts, NUM_TOKENS), generator=torch.Generator().manual_seed(8))


@torch.no_grad()
@pytest.mark.parametrize(
    ("num_prompt", "has_null"), [*((number, False) for number in range(1, NUM_TOKENS)), (2, True), (6, True)]
)
def test_any_split_of_prompt_and_continuation(topology: ProcessTopology, num_prompt: int, has_null: bool) -> None:
    """Beams are reordered after every second token."""
    model, ids = make_model(topology, dataclasses.replace(SHAPE, retro_null_key=has_null)), _ids(3)
    expected = torch.stack([_whole(model, text) for text in ids])
    state = RetroState(model, ids[:, :num_prompt], _retrieve)
    order, newest = torch.arange(3), None
    for place in range(num_prompt - 1, NUM_TOKENS):
        found = state.step(newest)[:, :V].log_softmax(1)
        torch.testing.assert_close(found, expected[order, place], rtol=0, atol=1e-5)
        if place % 2:
            rows = torch.tensor([2, 0, 1])
            state.select(rows, None)
            order = order[rows]
        newest = ids[order, place + 1 : place + 2] if place + 1 < NUM_TOKENS else None


@torch.no_grad()
@pytest.mark.parametrize("row", range(3))
def test_sequences_that_end_leave_the_others_as_they_are(topology: ProcessTopology, row: int) -> None:
    """Though their neighbours are the longest."""
    model, ids = make_model(topology), _ids(3)
    state = RetroState(model, ids[:, : M + 1], _retrieve)
    state.step(None)
    state.select(torch.tensor([row]), torch.tensor([row]))
    found = state.step(ids[row : row + 1, M + 1 : M + 2])[:, :V].log_softmax(1)
    torch.testing.assert_close(found[0], _whole(model, ids[row])[M + 1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_greedy_answers_are_those_of_whole_texts(topology: ProcessTopology) -> None:
    model, ids = make_model(topology), _ids(2)[:, :6]
    sources = RetroSources(model, ids, end_id=V - 1, retrieve=_retrieve)
    found = generate(sources, GenerationConfig(max_answer_length=9, num_beams=1), topology.groups.tp).best
    for text, answer, length, score in zip(ids, found.ids, found.lengths, found.scores, strict=True):
        written, likelihood = text, 0.0
        for _ in range(int(length)):
            tokens = _whole(model, written)[-1]
            likelihood += float(tokens.max())
            written = torch.cat([written, tokens.argmax()[None]])
        assert written[6:].tolist() == answer[: int(length)].tolist()
        assert float(score) == pytest.approx(likelihood / int(length), abs=1e-4)
    labels = found.ids[:, None, :9].where(torch.arange(9) < found.lengths[:, None, None], -1)
    again = sources.token_log_likelihoods(labels).sum(2)[:, 0] / found.lengths
    torch.testing.assert_close(again, found.scores, rtol=0, atol=1e-4)
