"""A causal reader's likelihoods and answers are those of every prompt read alone and whole, at any layout of ranks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_retrieval.data.examples.causal import RetrievedPrompts
from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.data.layouts.prompt import PromptFormatConfig, PromptLayout
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.data.stores.ragged import tokenize
from megatron_retrieval.evaluation.causal_answers import CausalAnswerer
from megatron_retrieval.models.beams import Generated
from megatron_retrieval.models.causal_lm import CausalConfig, CausalLM, _num_shared
from megatron_retrieval.models.causal_reader import CausalReader
from megatron_retrieval.models.generation import GenerationConfig, generate
from megatron_retrieval.models.mixture import MixedSources
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_byte_bpe import write_byte_bpe
from megatron_retrieval.testing.tiny_sentencepiece import SENTENCES
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.training.steps.causal_readings import CausalReadings
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.types.search import FILLER_ROW, NULL_ROW
from megatron_retrieval.types.tokens import TokenBatch

SHAPE = CausalConfig(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=48,
    max_position_embeddings=256,
    window_size=9,
    vocab_size=300,
    init_method_std=0.3,
)
END, K = 0, 3
GREEDY = GenerationConfig(max_answer_length=12)
BEAMS = GenerationConfig(max_answer_length=12, num_beams=3)
LAYOUT = PromptFormatConfig(prompt_instruction="Answer.", question_seq_length=16, reader_seq_length=96)


def _prompts() -> tuple[TokenBatch, Tensor, Tensor]:
    """Of two questions with three slots each, the last one a filler; and answers."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 300, (2 * K, 24), generator=generator)
    is_real = torch.ones(2, K, dtype=torch.bool)
    is_real[1, 2] = False
    return (
        TokenBatch(ids, torch.tensor([24, 5, 17, 2, 9, 24])),
        is_real,
        torch.tensor([[7, 200, 31, 0], [90, 0, -1, -1]]),
    )


def _model(topology: ProcessTopology, window: int | None = SHAPE.window_size) -> CausalLM:
    model = CausalLM(dataclasses.replace(SHAPE, window_size=window), topology, seed=4).eval()
    with torch.no_grad():  # answers end sooner or later
        if topology.tp_rank == 0:
            model.stack.embedding.weight[END] *= 2
    return model


def _read(topology: ProcessTopology, batch_size: int) -> dict[str, Any]:
    model = _model(topology)
    reader, (prompts, is_real, labels) = CausalReader(model, end_id=END, batch_size=batch_size), _prompts()
    tokens = reader.score_tokens(prompts, is_real, labels)
    tokens.sum().backward()
    rows = is_real.flatten().nonzero()[:, 0]
    sources = reader.sources(prompts.rows(rows), is_real.new_ones(len(rows), 1))
    tp_group = topology.groups.tp
    greedy, beams = (generate(sources, config, tp_group).best for config in (GREEDY, BEAMS))
    mixed = generate(MixedSources(sources, torch.tensor([0, 0, 0, 1, 1]), _weights(), tp_group), GREEDY, tp_group).best
    answers = labels[rows // K][:, None].expand(-1, 2, -1)
    return {
        "tokens": tokens.detach(),
        "gradient": model.stack.final_layernorm.weight.grad,
        "greedy": _written(greedy),
        "beams": _written(beams),
        "beam_scores": beams.scores,
        "rescored": sources.token_log_likelihoods(answers),
        "mixed": _written(mixed),
    }


def _written(found: Generated) -> list[list[int]]:
    return [ids[:length] for ids, length in zip(found.ids.tolist(), found.lengths.tolist(), strict=True)]


def _weights() -> Tensor:
    return torch.tensor([0.2, 0.5, 0.3, 0.6, 0.4]).log()


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    with process_topology(ParallelConfig(device="cpu")) as topology:
        return _read(topology, 4)


@torch.no_grad()
def _next(model: CausalLM, ids: list[int]) -> Tensor:
    """[V] log-likelihoods of the token after a sequence that is read whole and alone."""
    tokens = TokenBatch(torch.tensor([ids]), torch.tensor([len(ids)]))
    return model(tokens, torch.tensor([len(ids) - 1]))[0, :300].log_softmax(0)


def test_likelihoods_do_not_depend_on_what_is_read_beside(result: dict[str, Any]) -> None:
    (prompts, is_real, labels), expected = _prompts(), torch.zeros(2, K, 4)
    with process_topology(ParallelConfig(device="cpu")) as topology:
        model = _model(topology)
        for question, passage in is_real.nonzero().tolist():
            row = question * K + passage
            ids = prompts.ids[row, : prompts.lengths[row]].tolist()
            for place, token in enumerate(labels[question].tolist()):
                if token >= 0:
                    expected[question, passage, place] = _next(model, ids)[token]
                    ids.append(token)
        other = _read(topology, 1)
    torch.testing.assert_close(result["tokens"], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(other["tokens"], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(other["gradient"], result["gradient"], rtol=1e-4, atol=1e-5)
    rows = is_real.flatten().nonzero()[:, 0]
    for copy in range(2):
        torch.testing.assert_close(result["rescored"][:, copy], expected.flatten(0, 1)[rows], rtol=0, atol=1e-5)


def test_answers_are_those_of_whole_sequences(result: dict[str, Any]) -> None:
    prompts, is_real, _ = _prompts()
    rows = is_real.flatten().nonzero()[:, 0].tolist()
    own = [prompts.ids[row, : prompts.lengths[row]].tolist() for row in rows]
    with process_topology(ParallelConfig(device="cpu")) as topology:
        model = _model(topology)
        for ids, found in zip(own, result["greedy"], strict=True):
            assert found == _greedy(lambda written, ids=ids: _next(model, ids + written))
        for group, parts in enumerate(([0, 1, 2], [3, 4])):

            def mixture(written: list[int], parts: list[int] = parts) -> Tensor:
                return torch.stack([_next(model, own[part] + written) + _weights()[part] for part in parts]).logsumexp(
                    0
                )

            assert result["mixed"][group] == _greedy(mixture)
        for ids, found, score in zip(own, result["beams"], result["beam_scores"].tolist(), strict=True):
            likelihood = sum(float(_next(model, ids + found[:n])[token]) for n, token in enumerate(found))
            assert score == pytest.approx(likelihood / len(found), abs=1e-4)
    assert len({len(ids) for ids in result["greedy"]}) > 1


def _greedy(next_tokens: Callable[[list[int]], Tensor]) -> list[int]:
    written: list[int] = []
    while len(written) < GREEDY.max_answer_length and written[-1:] != [END]:
        written.append(int(next_tokens(written).argmax()))
    return written


@pytest.mark.parametrize("window", [None, 9])
def test_what_all_prompts_begin_with_is_read_once(window: int | None) -> None:
    prompts, _, _ = _prompts()
    ids, lengths = torch.cat([torch.arange(40, 52).expand(2 * K, -1), prompts.ids], 1), prompts.lengths + 12
    with process_topology(ParallelConfig(device="cpu")) as topology:
        model = _model(topology, window)
        assert _num_shared(ids, int(lengths.min()) - 1) == 12
        together = model.read_prompts(TokenBatch(ids, lengths))
        for row, length in enumerate(lengths.tolist()):
            alone = model.read_prompts(TokenBatch(ids[row : row + 1], lengths[row : row + 1]))
            for attention, parts in alone.computed.items():
                for one, own in zip(together.computed[attention], parts, strict=True):
                    torch.testing.assert_close(one[: length - 1, row], own[:, 0], rtol=0, atol=1e-5)


def test_ranks_that_share_the_model_agree(result: dict[str, Any]) -> None:
    for other in run_on_ranks(_read, 2, 2, tensor_model_parallel_size=2):
        for name, ours in result.items():
            if isinstance(ours, Tensor):
                torch.testing.assert_close(other[name], ours, rtol=1e-4, atol=1e-4)
            else:
                assert other[name] == ours


def test_answers_to_questions(tmp_path: Path) -> None:
    vocabulary = ByteBpeTokenizer(write_byte_bpe(tmp_path))
    passages = [Passage(str(number), SENTENCES[number][:9], SENTENCES[number]) for number in range(4)]
    questions = [
        ReaderQuestion("a", "who wrote it?", (), (passages[0], passages[1]), (9.0, 4.0)),
        ReaderQuestion("b", "where?", (), (passages[3],), (3.0,)),
        ReaderQuestion("c", "did it?", ()),
    ]
    layout = PromptLayout(LAYOUT, vocabulary)
    with process_topology(ParallelConfig(device="cpu")) as topology:
        reader = CausalReader(_model(topology, None), end_id=END, batch_size=2)
        found = {}
        for use in ("none", "marginal", "token"):
            scores = PassageScoreConfig(passage_score_use=use)
            answerer = CausalAnswerer(reader, vocabulary, layout, GREEDY, topology, passage_scores=scores)
            found[use] = answerer.answer(questions)
        sources = reader.sources(layout.alone(tokenize(vocabulary, ["did it?"])), torch.ones(1, 1, dtype=torch.bool))
        alone = generate(sources, GREEDY, topology.groups.tp).best
    written = vocabulary.decode([alone.ids[0].tolist()])[0].strip().splitlines()[0].strip()
    assert {predictions[2].text for predictions in found.values()} == {written}
    assert [prediction.passage for prediction in found["none"]] == [None] * 3
    assert found["marginal"][1].passage == found["token"][1].passage == 0
    assert found["none"][1].text == found["marginal"][1].text == found["token"][1].text
    assert found["token"][1].score == pytest.approx(found["marginal"][1].score, abs=1e-4)


def test_what_end_to_end_training_asks(tmp_path: Path) -> None:
    vocabulary = ByteBpeTokenizer(write_byte_bpe(tmp_path))
    passages = [{"id": str(number), "title": text[:9], "text": text} for number, text in enumerate(SENTENCES)]
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    source = str(tmp_path / "passages.jsonl")
    output = str(tmp_path / "evidence")
    build_evidence(EvidenceBuilderConfig(input=(source,), output=output, vocab_file=str(vocabulary.path)))
    evidence, layout = EvidenceStore(output), PromptLayout(LAYOUT, vocabulary)
    rows = torch.tensor([[2, 0, FILLER_ROW], [FILLER_ROW] * 3, [NULL_ROW, 1, 3]])
    asked = tokenize(vocabulary, ["where is it?", "who?", "did it?"])
    answers = tokenize(vocabulary, ["Rome", "Paris", "in 1889"])
    queries = TokenBatch(torch.zeros(3, 1, dtype=torch.int64), torch.ones(3, dtype=torch.int64))
    own = tuple(answers.take(np.array([row])) for row in range(3))
    batch = AskedBatch(queries, asked, answers, own, torch.empty(3, 0, dtype=torch.int64), 3)
    with process_topology(ParallelConfig(device="cpu")) as topology, torch.no_grad():
        reader = CausalReader(_model(topology, None), end_id=END, batch_size=2)
        side = CausalReadings(reader, RetrievedPrompts(evidence, layout, vocabulary, max_answer_length=9), topology)
        reading = side.reading(batch, rows)
        each, tokens = reading.each(), reading.each_token()
        smoothed, uniform = reading.smoothed()
        together, alone = reading.together(), side.without_passages(batch)["log_likelihood_alone"]
        nothing = side.reading(batch, torch.full((3, 1), FILLER_ROW)).each()
        title, text = (tokenize(vocabulary, [string]) for string in (SENTENCES[3][:9], SENTENCES[3]))
        prompt = layout.with_passages(asked.take(np.array([2])), title, text)
        by_hand = reader.score_each(prompt, torch.ones(1, 1, dtype=torch.bool), reading.labels[2:])
        with pytest.raises(ValueError, match="no place for scores"):
            reading.together(torch.zeros(3, 3))
    assert reading.is_real.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    torch.testing.assert_close(tokens.sum(2)[reading.is_real], each[reading.is_real])
    torch.testing.assert_close(smoothed[reading.is_real], tokens[reading.is_real], rtol=1e-4, atol=1e-4)
    is_scored = reading.is_real[:, :, None] & reading.is_token[:, None]
    assert bool((uniform[is_scored] < -torch.tensor(300.0).log() + 1e-4).all())  # at most that of equal chances
    torch.testing.assert_close(each[2, 2], by_hand[0, 0])
    torch.testing.assert_close(each[2, 0], nothing[2, 0])  # the null passage: the question alone
    torch.testing.assert_close(nothing.sum(), alone)
    lengths = reading.is_token.sum(1).tolist()
    joint = torch.stack([part.sum() for part in together.split(lengths)])
    torch.testing.assert_close(joint[1], each[1, 0])  # nothing was found for it
    assert not torch.allclose(joint[0], each[0, 0], atol=1e-3)
