"""Greedy and beam search write what Hugging Face's `generate` writes, token by token, at any tensor-parallel size."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from megatron_retrieval.checkpoint.huggingface.t5 import import_t5, t5_config_from_hf
from megatron_retrieval.checkpoint.store.reader import fill_model
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.encoded_sources import EncodedSources
from megatron_retrieval.models.generation import GenerationConfig, generate
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.models.next_tokens import best_tokens
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_hf import NUM_EMBEDDINGS, attention_mask, tiny_t5
from megatron_retrieval.types.tokens import TokenBatch

State = dict[str, Tensor]
Answer = tuple[list[int], float]
NUM_PROMPTS, END_ID = 50, 1
CONFIGS = {
    "greedy": GenerationConfig(max_answer_length=14),
    "greedy, long": GenerationConfig(max_answer_length=14, min_answer_length=6),
    "beam 2": GenerationConfig(num_beams=2, max_answer_length=14),
    "beam 4": GenerationConfig(num_beams=4, max_answer_length=14),
    "beam 4, short": GenerationConfig(num_beams=4, max_answer_length=14, length_penalty=-0.5),
    "beam 4, long": GenerationConfig(num_beams=4, max_answer_length=14, length_penalty=2.0, min_answer_length=3),
    "beam 3, first": GenerationConfig(num_beams=3, max_answer_length=14, stop_at_first_answers=True),
}


def _prompts() -> TokenBatch:
    random = torch.Generator().manual_seed(8)
    lengths = torch.randint(1, 16, (NUM_PROMPTS,), generator=random)
    return TokenBatch(torch.randint(2, NUM_EMBEDDINGS, (NUM_PROMPTS, 15), generator=random), lengths)


def _hf_model(*, gated: bool, tied: bool) -> transformers.T5ForConditionalGeneration:
    """A T5 whose answers depend on what it has read and written, and end sooner or later."""
    model = tiny_t5(gated=gated, tied=tied)
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        output = model.lm_head.weight
        output.add_(torch.randn(output.shape, generator=random), alpha=0.5 if tied else 0.3)
        output[END_ID] *= 4.0 if tied else 2.0  # now and then the likeliest, whatever its direction
        for block in model.decoder.block:
            block.layer[1].EncDecAttention.o.weight.mul_(6)
    return model


def _generate(
    topology: ProcessTopology, config: T5Config, full: State, batch_size: int, names: Sequence[str]
) -> dict[str, list[Answer]]:
    model = T5(config, topology).eval()
    fill_model(model, full.keys(), full.__getitem__, topology, source="tiny")
    answers: dict[str, list[Answer]] = {name: [] for name in names}
    for rows in torch.arange(NUM_PROMPTS).split(batch_size):
        batch = _prompts().rows(rows)
        with torch.no_grad():
            memory = EncodedMemory.of_texts(model.encoder(batch), batch.lengths)
        for name in names:
            found = generate(EncodedSources(model, memory), CONFIGS[name], topology.groups.tp).best
            for ids, length, score in zip(found.ids, found.lengths, found.scores, strict=True):
                assert not ids[length:].any()
                answers[name].append((ids[:length].tolist(), score.item()))
    return answers


def _expected(model: transformers.T5ForConditionalGeneration, settings: GenerationConfig) -> tuple[list[Any], Any]:
    batch = _prompts()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = model.generate(
            input_ids=batch.ids,
            attention_mask=attention_mask(batch),
            max_new_tokens=settings.max_answer_length,
            min_new_tokens=settings.min_answer_length or None,
            num_beams=settings.num_beams,
            length_penalty=settings.length_penalty,
            early_stopping=settings.stop_at_first_answers,
            do_sample=False,
            eos_token_id=END_ID,
            pad_token_id=0,
            decoder_start_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
        )
    ids = [row[1:] for row in output.sequences.tolist()]
    ids = [row[: row.index(END_ID) + 1] if END_ID in row else row for row in ids]
    return ids, output.get("sequences_scores")


@pytest.mark.parametrize(
    ("gated", "tied", "names"), [(False, True, list(CONFIGS)), (True, False, ["greedy", "beam 4", "beam 3, first"])]
)
def test_answers_are_hugging_faces(gated: bool, tied: bool, names: list[str]) -> None:
    theirs = _hf_model(gated=gated, tied=tied)
    config = t5_config_from_hf(theirs.config.to_dict(), "tiny")
    full = import_t5(theirs.state_dict(), config, "tiny")
    # the answers of a batch, of a smaller one, and of two ranks
    (one,) = run_on_ranks(_generate, 1, config, full, NUM_PROMPTS, names)
    (few,) = run_on_ranks(_generate, 1, config, full, 23, names)
    two = run_on_ranks(_generate, 2, config, full, 20, names, tensor_model_parallel_size=2)
    assert two[0] == two[1]
    for name in names:
        settings = CONFIGS[name]
        ids, scores = _expected(theirs, settings)
        assert len({tuple(row) for row in ids}) >= 15, name
        assert 1 < sum(len(row) < settings.max_answer_length for row in ids) < NUM_PROMPTS, name
        for layout, ours in (("one", one), ("few", few), ("two", two[0])):
            assert [row for row, _ in ours[name]] == ids, f"{name}, {layout}"
            if scores is not None:
                found = torch.tensor([score for _, score in ours[name]])
                torch.testing.assert_close(found, scores, rtol=1e-4, atol=1e-5, msg=f"{name}, {layout}")


def _ties(topology: ProcessTopology) -> list[list[int]]:
    """The best tokens of rows with equal logits, of which this rank has its part."""
    whole = torch.zeros(3, 16)
    whole[1, [3, 9, 12]] = 1.0
    whole[2, ::2] = torch.arange(8) // 3 + 1.0
    part = whole.chunk(topology.tp_size, 1)[topology.tp_rank].clone()
    found = best_tokens(part, 4, topology.groups.tp)
    expected = whole.log_softmax(1).gather(1, found.ids)
    torch.testing.assert_close(found.log_likelihoods, expected)
    ids: list[list[int]] = found.ids.tolist()
    return ids


@pytest.mark.parametrize("tp_size", [1, 2])
def test_of_equal_tokens_the_lower_is_chosen(tp_size: int) -> None:
    for ids in run_on_ranks(_ties, tp_size, tensor_model_parallel_size=tp_size):
        assert ids == [[0, 1, 2, 3], [3, 9, 12, 0], [12, 14, 6, 8]]


def test_limits_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="--num-beams 0: must be at least 1"):
        GenerationConfig(num_beams=0)
    with pytest.raises(ConfigError, match="--min-answer-length 5"):
        GenerationConfig(min_answer_length=5, max_answer_length=5)
