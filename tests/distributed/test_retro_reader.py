"""A RETRO as a reader: what it reads of a question, what its answers depend on, at any layout of ranks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_retrieval.data.examples.causal import RetrievedPrompts
from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.data.layouts.retro import RetroFormatConfig, RetroLayout
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.data.stores.ragged import Ragged, tokenize
from megatron_retrieval.models.beams import Generated
from megatron_retrieval.models.generation import GenerationConfig, generate
from megatron_retrieval.models.retro import Retro, RetroConfig
from megatron_retrieval.models.retro_reader import RetroReader
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.parallel.vocab_loss import vocab_parallel_cross_entropy
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_byte_bpe import write_byte_bpe
from megatron_retrieval.testing.tiny_sentencepiece import SENTENCES
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.training.steps.causal_readings import CausalReadings
from megatron_retrieval.types.causal import continued
from megatron_retrieval.types.neighbours import NeighbouredTexts, Neighbours
from megatron_retrieval.types.search import FILLER_ROW, NULL_ROW
from megatron_retrieval.types.tokens import TokenBatch

M, V, END = 6, 100, 0
SHAPE = RetroConfig(
    num_layers=3,
    hidden_size=32,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=48,
    max_position_embeddings=64,
    vocab_size=V,
    init_method_std=0.3,
    retro_chunk_length=M,
    retro_cross_attention_layers=(2, 3),
    retro_cca_init="normal",
    retro_encoder_num_layers=2,
    retro_encoder_hidden_dropout=0.0,
    retro_encoder_attention_dropout=0.0,
    retro_null_key=True,
)
GREEDY, BEAMS = GenerationConfig(max_answer_length=M), GenerationConfig(max_answer_length=M, num_beams=3)


def _model(topology: ProcessTopology) -> Retro:
    model, generator = Retro(SHAPE, topology, seed=4).eval(), torch.Generator().manual_seed(5)
    heads = SHAPE.num_attention_heads // topology.tp_size
    with torch.no_grad():  # distances count
        for name, parameter in model.named_parameters():
            if "relative_bias" in name:
                every = torch.randn(len(parameter), SHAPE.num_attention_heads, generator=generator)
                parameter.copy_(every[:, topology.tp_rank * heads :][:, :heads])
    return model


def _prompts() -> NeighbouredTexts:
    """Of four questions: a whole chunk, less, without passages, the least; passages are longer than two chunks."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([M, 4, 5, 2])
    ids = torch.randint(2, V, (4, M), generator=generator)
    found = torch.randint(2, V, (3, 3, 17), generator=generator)
    tokens = torch.tensor([[9, 0, 0], [17, 3, 8], [12, 5, 0]])
    asked = torch.tensor([0, 1, 3])
    return NeighbouredTexts(ids, lengths, Neighbours(found, tokens, asked, lengths[asked] - M))


ANSWERS = torch.tensor([[7, 31, 60, 9, 8, 0], [90, 0, -1, -1, -1, -1], [5, 6, 0, -1, -1, -1], [1, 2, 3, 0, -1, -1]])


def _read(topology: ProcessTopology, batch_size: int) -> dict[str, Any]:
    model = _model(topology)
    reader, prompts = RetroReader(model, end_id=END, batch_size=batch_size), _prompts()
    is_real = torch.ones(len(prompts), 1, dtype=torch.bool)
    tokens = reader.score_tokens(prompts, is_real, ANSWERS)
    (-tokens.sum()).backward()
    sources = reader.sources(prompts, is_real)
    greedy, beams = (generate(sources, config, topology.groups.tp).best for config in (GREEDY, BEAMS))
    return {
        "tokens": tokens.detach()[:, 0],
        "gradients": {name: gather_full(p, topology, p.grad) for name, p in model.named_parameters()},
        "greedy": _written(greedy),
        "beams": _written(beams),
        "beam_scores": beams.scores,
        "rescored": sources.token_log_likelihoods(ANSWERS[:, None].expand(-1, 2, -1)),
    }


def _written(found: Generated) -> list[list[int]]:
    return [ids[:length] for ids, length in zip(found.ids.tolist(), found.lengths.tolist(), strict=True)]


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    with process_topology(ParallelConfig(device="cpu")) as topology:
        return _read(topology, 4)


@torch.no_grad()
def _next(model: Retro, prompt: NeighbouredTexts, written: list[int]) -> Tensor:
    """[V] log-likelihoods of the token after one prompt and what was written behind it, read whole and alone."""
    ids = [*prompt.ids[0, : prompt.lengths[0]].tolist(), *written]
    tokens = TokenBatch(torch.tensor([ids]), torch.tensor([len(ids)]))
    return model(tokens, torch.tensor([len(ids) - 1]), prompt.neighbours)[0, :V].log_softmax(0)


def test_likelihoods_and_answers_are_those_of_questions_read_alone(result: dict[str, Any]) -> None:
    with process_topology(ParallelConfig(device="cpu")) as topology:
        model, other = _model(topology), _read(topology, 1)
        for row in range(len(ANSWERS)):
            prompt, answer = _prompts().rows(torch.tensor([row])), ANSWERS[row][ANSWERS[row] >= 0].tolist()
            expected = [float(_next(model, prompt, answer[:place])[token]) for place, token in enumerate(answer)]
            assert result["tokens"][row, : len(answer)].tolist() == pytest.approx(expected, abs=1e-5)
            for name in ("greedy", "beams"):
                found = result[name][row]
                each = [_next(model, prompt, found[:place]) for place in range(len(found))]
                if name == "greedy":
                    assert found == [int(tokens.argmax()) for tokens in each]
                else:
                    likelihood = sum(float(tokens[token]) for tokens, token in zip(each, found, strict=True))
                    assert float(result["beam_scores"][row]) == pytest.approx(likelihood / len(found), abs=1e-4)
    torch.testing.assert_close(other["tokens"], result["tokens"], rtol=0, atol=1e-5)
    for copy in range(2):
        torch.testing.assert_close(result["rescored"][:, copy], result["tokens"], rtol=0, atol=1e-5)


def test_ranks_that_share_the_model_agree(result: dict[str, Any]) -> None:
    for other in run_on_ranks(_read, 2, 2, tensor_model_parallel_size=2):
        for name in ("tokens", "beam_scores", "rescored"):
            torch.testing.assert_close(other[name], result[name], rtol=1e-4, atol=1e-4)
        for name, gradient in result["gradients"].items():
            torch.testing.assert_close(other["gradients"][name], gradient, rtol=1e-3, atol=1e-4, msg=name)
        assert (other["greedy"], other["beams"]) == (result["greedy"], result["beams"])


@torch.no_grad()
def test_what_answers_depend_on() -> None:
    """A question's passages and nothing else; the last token of the question is the first that reads them."""
    prompts = _prompts()
    neighbours = prompts.neighbours
    with process_topology(ParallelConfig(device="cpu")) as topology:
        model = _model(topology)
        reader = RetroReader(model, end_id=END, batch_size=4)
        is_real = torch.ones(4, 1, dtype=torch.bool)

        def scores(found: Neighbours) -> Tensor:
            return reader.score_tokens(dataclasses.replace(prompts, neighbours=found), is_real, ANSWERS)[:, 0]

        before = scores(neighbours)
        other = neighbours.ids.clone()
        other[1, 0, 2] += 1
        changed = scores(dataclasses.replace(neighbours, ids=other)) != before
        assert changed.tolist() == [[False] * 6, [True] * 2 + [False] * 4, [False] * 6, [False] * 6]
        padding = neighbours.ids.masked_fill(torch.arange(17) >= neighbours.lengths[..., None], 1)
        assert torch.equal(scores(dataclasses.replace(neighbours, ids=padding)), before)
        swapped = neighbours.ids[:, [2, 0, 1]], neighbours.lengths[:, [2, 0, 1]]
        torch.testing.assert_close(
            scores(dataclasses.replace(neighbours, ids=swapped[0], lengths=swapped[1])), before, rtol=0, atol=1e-5
        )
        none = scores(neighbours.rows(torch.zeros(0, dtype=torch.int64)))
        torch.testing.assert_close(none[2], before[2], rtol=0, atol=1e-5)  # closed book
        states = model.stack.read(prompts, neighbours=neighbours)[0] != model.stack.read(prompts)[0]
        ends = (prompts.lengths.cumsum(0) - 1)[[0, 1, 3]].tolist()
        assert states.any(1).nonzero()[:, 0].tolist() == ends


@torch.no_grad()
def test_what_a_short_question_lacks_of_its_chunk_is_hidden() -> None:
    neighbours, generator = _prompts().neighbours, torch.Generator().manual_seed(8)
    states = torch.randn(3, M, SHAPE.hidden_size, generator=generator)
    is_missing = torch.arange(M) < -neighbours.starts[:, None]
    assert is_missing.sum(1).tolist() == [0, 2, 4]
    with process_topology(ParallelConfig(device="cpu")) as topology:
        stack = _model(topology).stack
        found = stack.neighbour_encoder(neighbours, states, stack.embedding)
        others = states + is_missing[..., None] * 3.0
        assert torch.equal(stack.neighbour_encoder(neighbours, others, stack.embedding), found)
        first = states.clone()
        first[torch.arange(3), -neighbours.starts] += 3.0
        changed = stack.neighbour_encoder(neighbours, first, stack.embedding) != found
        assert changed.flatten(1).any(1).all()


def test_what_is_read(tmp_path: Path) -> None:
    vocabulary = ByteBpeTokenizer(write_byte_bpe(tmp_path))
    config = RetroFormatConfig(question_seq_length=12, reader_seq_length=20)
    layout = RetroLayout(config, vocabulary, 24)
    questions = tokenize(vocabulary, ["who?", "in which of the many cities of the world does it stand today?", "why?"])
    columns = tokenize(vocabulary, ["Paris", ""]), tokenize(vocabulary, ["the capital of France " * 9, "a river"])
    read = layout.together(questions, Ragged(np.array([1, 0, 1]), np.array([0, 2, 3, 3])), columns)
    texts = vocabulary.decode([ids[:length].tolist() for ids, length in zip(read.ids, read.lengths, strict=True)])
    assert texts[0] == "question: who? \nanswer:"
    assert texts[1].endswith("it stand today? \nanswer:")
    assert not texts[1].startswith("question")
    assert read.lengths.tolist()[1] == 24
    found = read.neighbours
    assert found.texts.tolist() == [0, 1]
    assert found.starts.tolist() == [int(read.lengths[0]) - 24, 0]
    assert found.lengths[:, 1].tolist() == [20, 0]
    passages = vocabulary.decode(
        [ids[:length].tolist() for ids, length in zip(found.ids[0], found.lengths[0], strict=True)]
    )
    assert passages[0] == "source: a river"
    assert passages[1].startswith("title: Paris, source: the capital")
    assert vocabulary.encode([texts[0]])[0] == read.ids[0, : read.lengths[0]].tolist()
    alone = layout.alone(questions)
    assert len(alone.neighbours) == 0
    assert torch.equal(alone.ids, read.ids)


@torch.no_grad()
def test_what_end_to_end_training_asks(tmp_path: Path) -> None:
    """Passages one at a time and all of them; a null passage is none."""
    vocabulary = ByteBpeTokenizer(write_byte_bpe(tmp_path))
    records = [{"id": str(number), "title": text[:9], "text": text} for number, text in enumerate(SENTENCES)]
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = {"input": (str(tmp_path / "passages.jsonl"),), "vocab_file": str(vocabulary.path)}
    build_evidence(EvidenceBuilderConfig(output=str(tmp_path / "evidence"), **settings))  # type: ignore[arg-type]
    layout = RetroLayout(RetroFormatConfig(), vocabulary, 24)
    asked, answers = tokenize(vocabulary, ["where?", "who?"]), tokenize(vocabulary, ["Rome", "Paris"])
    queries = TokenBatch(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, dtype=torch.int64))
    own = answers.take(np.array([0])), answers.take(np.array([1]))
    batch = AskedBatch(queries, asked, answers, own, torch.empty(2, 0, dtype=torch.int64), 2)
    shape = dataclasses.replace(SHAPE, vocab_size=300, retro_chunk_length=24)
    with process_topology(ParallelConfig(device="cpu")) as topology:
        reader = RetroReader(Retro(shape, topology, seed=4).eval(), end_id=END, batch_size=2)
        evidence = EvidenceStore(tmp_path / "evidence")
        side = CausalReadings(reader, RetrievedPrompts(evidence, layout, vocabulary, max_answer_length=9), topology)
        reading = side.reading(batch, torch.tensor([[2, NULL_ROW, 0], [FILLER_ROW] * 3]))
        each, together = reading.each(), reading.together()
        first = asked.take(np.array([0]))
        columns = (
            tokenize(vocabulary, [records[row]["title"] for row in (2, 0)]),
            tokenize(vocabulary, [records[row]["text"] for row in (2, 0)]),
        )
        texts = [layout.with_passages(first, *(column.take(np.array([row])) for column in columns)) for row in (0, 1)]
        texts += [layout.together(first, Ragged(np.array([0, 1]), np.array([0, 2])), columns), layout.alone(asked)]
        one, other, both, alone = (
            reader.score_each(text, torch.ones(len(text), 1, dtype=torch.bool), reading.labels[: len(text)])[:, 0]
            for text in texts
        )
    assert reading.is_real.tolist() == [[True] * 3, [True, False, False]]
    assert reading.labels[1, : int((reading.labels[1] >= 0).sum()) - 1].tolist() == vocabulary.encode([" Paris"])[0]
    torch.testing.assert_close(each[0], torch.stack([one[0], alone[0], other[0]]))
    torch.testing.assert_close(each[1, 0], alone[1])
    found = torch.stack([part.sum() for part in together.split(reading.is_token.sum(1).tolist())])
    torch.testing.assert_close(found, torch.stack([both[0], alone[1]]))
    assert len({round(float(value), 3) for value in (one, other, both, alone[0])}) == 4


COPYING = dataclasses.replace(
    SHAPE,
    num_layers=2,
    num_attention_heads=2,
    num_query_groups=None,
    vocab_size=16,
    init_method_std=0.1,
    retro_chunk_length=4,
    retro_cross_attention_layers=(2,),
    retro_encoder_num_layers=1,
)


def _asked(generator: torch.Generator, num_questions: int) -> tuple[NeighbouredTexts, Tensor]:
    """Questions of one to four tokens about a passage that ends with the answer, three tokens."""
    lengths = torch.randint(1, 5, (num_questions,), generator=generator)
    ids = torch.randint(1, 16, (num_questions, 4), generator=generator)
    passages = torch.randint(1, 16, (num_questions, 1, 5), generator=generator)
    numbers = torch.arange(num_questions)
    found = Neighbours(passages, torch.full((num_questions, 1), 5), numbers, lengths - 4)
    return NeighbouredTexts(ids, lengths, found), passages[:, 0, 2:]


def test_it_learns_to_find_the_answer_in_the_passage() -> None:
    """However long the question is; and cannot without the passage."""
    with process_topology(ParallelConfig(device="cpu")) as topology:
        model, generator = Retro(COPYING, topology, seed=1), torch.Generator().manual_seed(2)
        reader, optimizer = RetroReader(model, end_id=END, batch_size=8), torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(90):
            batch = continued(*_asked(generator, 32))
            places = (batch.labels.flatten() >= 0).nonzero()[:, 0]
            optimizer.zero_grad()
            logits = reader.logits(batch.tokens, places)
            vocab_parallel_cross_entropy(logits, batch.labels.flatten()[places]).mean().backward()
            optimizer.step()
        model.eval()
        prompts, answers = _asked(generator, 64)
        is_real = torch.ones(64, 1, dtype=torch.bool)
        found = generate(reader.sources(prompts, is_real), GenerationConfig(max_answer_length=3), topology.groups.tp)
        assert (found.best.ids == answers).all(1).float().mean() > 0.95
        nothing = prompts.neighbours.rows(torch.zeros(0, dtype=torch.int64))
        with torch.no_grad():
            alone = reader.score_each(dataclasses.replace(prompts, neighbours=nothing), is_real, answers)
        assert float(-alone.mean() / 3) > np.log(15) - 0.1
