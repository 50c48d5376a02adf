"""Answers of one line end where it does: by hand from whole sequences, at one rank and with the vocabulary on two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_causal_reader import BEAMS, END, GREEDY, _model, _next, _prompts, _weights, _written
from torch import Tensor

from megatron_retrieval.evaluation.fusion_search import AnswerSearch
from megatron_retrieval.models.answer_lines import AnswerLines
from megatron_retrieval.models.causal_reader import CausalReader
from megatron_retrieval.models.generation import GenerationConfig, generate
from megatron_retrieval.models.mixture import MixedSources
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.models.prompt import Prompts
from megatron_retrieval.models.prompt_sources import PromptSources
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_byte_bpe import write_byte_bpe
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.tokenizers.vocabulary import LineTokens
from megatron_retrieval.types.tokens import TokenBatch

#: of the model's tokens, what would begin a line (on both of two ranks), what holds the end of one, what is white space
STARTS, CLOSES = (*range(140, 160), *range(270, 290)), range(40, 90)
BLANK = (*STARTS, *range(160, 190))
EARLY = GenerationConfig(max_answer_length=12, sampling_temperature=1.0)


def _tokens(starts: Sequence[int], closes: Sequence[int], blank: Sequence[int], size: int) -> LineTokens:
    is_text, starts_line, closes_line = (np.zeros(size, np.bool_) for _ in range(3))
    starts_line[list(starts)] = closes_line[list(closes)] = is_text[:] = True
    is_text[[END, *blank]] = False
    return LineTokens(is_text, starts_line, closes_line)


def _read(topology: ProcessTopology) -> dict[str, Any]:
    model, (prompts, is_real, _) = _model(topology), _prompts()
    tp_group, width = topology.groups.tp, model.stack.embedding.weight.size(0)
    lines = AnswerLines.of(_tokens(STARTS, CLOSES, BLANK, 300), END, width, tp_group, topology.device)
    reader = CausalReader(model, end_id=END, batch_size=4, lines=lines)
    rows = is_real.flatten().nonzero()[:, 0]
    sources = reader.sources(prompts.rows(rows), is_real.new_ones(len(rows), 1))
    names = [str(row) for row in rows.tolist()]
    found = {
        "greedy": generate(sources, GREEDY, tp_group).best,
        "beams": generate(sources, BEAMS, tp_group).best,
        "drawn": generate(sources, EARLY, tp_group, names).best,
        "mixed": generate(
            MixedSources(sources, torch.tensor([0, 0, 0, 1, 1]), _weights(), tp_group), GREEDY, tp_group
        ).best,
    }
    longest = found["greedy"].ids.size(1)
    labels = torch.full((len(rows), 2, longest), -1)
    for row, ids in enumerate(_written(found["greedy"])):
        labels[row, :, : len(ids)] = torch.tensor(ids)
    return {
        **{name: _written(answers) for name, answers in found.items()},
        **{f"{name} scores": answers.scores for name, answers in found.items()},
        "rescored": sources.token_log_likelihoods(labels),
    }


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    with process_topology(ParallelConfig(device="cpu")) as topology:
        return _read(topology)


def _by_hand(likelihoods: Tensor, written: list[int]) -> Tensor:
    """[V] log-likelihoods, in which all that ends an answer is the end token."""
    has_text = any(token not in BLANK for token in written)
    if any(token in CLOSES for token in written):
        certain = torch.full_like(likelihoods, -torch.inf)
        certain[END] = 0
        return certain
    if has_text:
        likelihoods = likelihoods.clone()
        likelihoods[END] = likelihoods[[END, *STARTS]].logsumexp(0)
        likelihoods[list(STARTS)] = -torch.inf
    return likelihoods


def test_answers_and_scores_are_those_of_whole_sequences(result: dict[str, Any]) -> None:
    prompts, is_real, _ = _prompts()
    rows = is_real.flatten().nonzero()[:, 0].tolist()
    own = [prompts.ids[row, : prompts.lengths[row]].tolist() for row in rows]
    ended_by = set()
    with process_topology(ParallelConfig(device="cpu")) as topology:
        model = _model(topology)

        def following(prompt: list[int], written: list[int]) -> Tensor:
            return _by_hand(_next(model, prompt + written), written)

        for place, prompt in enumerate(own):
            for kind in ("greedy", "beams", "drawn"):
                answer, score = result[kind][place], float(result[f"{kind} scores"][place])
                tokens = [following(prompt, answer[:n]) for n in range(len(answer))]
                of_tokens = torch.stack([found[token] for found, token in zip(tokens, answer, strict=True)])
                assert score == pytest.approx(float(of_tokens.mean()), abs=1e-4)
                if kind == "greedy":
                    assert answer == [int(found.argmax()) for found in tokens]
                    rescored = result["rescored"][place, :, : len(answer)]
                    torch.testing.assert_close(rescored, of_tokens.expand(2, -1), rtol=0, atol=1e-4)
                plain = [int(_next(model, prompt + answer[:n]).argmax()) for n in range(len(answer))]
                ended_by |= {"a line" if plain[-1] in STARTS else "a token"} if answer[-1] == END else set()
                ended_by |= {"inside"} if len(answer) > 1 and answer[-2] in CLOSES else set()
        for group, parts in enumerate(([0, 1, 2], [3, 4])):
            answer = result["mixed"][group]
            for n, token in enumerate(answer):
                each = [following(own[part], answer[:n]) + _weights()[part] for part in parts]
                assert int(torch.stack(each).logsumexp(0).argmax()) == token
    assert {"a line", "inside"} <= ended_by


def test_ranks_that_share_the_vocabulary_agree(result: dict[str, Any]) -> None:
    for other in run_on_ranks(_read, 2, tensor_model_parallel_size=2):
        for name, ours in result.items():
            if isinstance(ours, Tensor):
                torch.testing.assert_close(other[name], ours, rtol=1e-4, atol=1e-4)
            else:
                assert other[name] == ours


#: tokens of models that go on in one way behind each prompt
BREAK, A, B, X, Y, A_LINE, PROMPT, SIZE = 1, 2, 3, 4, 5, 6, 7, 12


def _tables(follows: list[dict[int, int]]) -> Tensor:
    """[prompts, V, V] logits of the token behind each; the end is behind those that are not named."""
    tables = torch.full((len(follows), SIZE, SIZE), -30.0)
    for table, own in zip(tables, follows, strict=True):
        for token in range(SIZE):
            table[token, own.get(token, END)] = 0
    return tables


class _TableReader:
    """Reads prompts of one token, PROMPT and those behind it; see `fusion_search.TextsReader`."""

    def __init__(self, tables: Tensor, lines: AnswerLines | None) -> None:
        def step(ids: Tensor, prompts: Prompts, cache: object) -> Tensor:
            of_rows = prompts.newest.repeat_interleave(len(ids) // len(prompts.newest)) - PROMPT
            return tables[of_rows, ids[:, 0]]

        self._model, self._lines = SimpleNamespace(stack=SimpleNamespace(step=step), logits=torch.clone), lines

    def sources(self, texts: TokenBatch, is_real: Tensor, passage_scores: Tensor | None = None) -> PromptSources:
        prompts = Prompts({}, texts.lengths, texts.ids[:, 0], False, 1)
        return PromptSources(self._model, prompts, END, self._lines)  # type: ignore[arg-type]


def _texts(number: int) -> TokenBatch:
    return TokenBatch(torch.arange(PROMPT, PROMPT + number)[:, None], torch.ones(number, dtype=torch.int64))


def _lines(topology: ProcessTopology) -> AnswerLines:
    return AnswerLines.of(_tokens([BREAK], [A_LINE], [BREAK], SIZE), END, SIZE, topology.groups.tp, topology.device)


@pytest.mark.parametrize("decoding", ["fast", "thorough"])
@pytest.mark.parametrize("word", [A, A_LINE])
def test_answers_that_agree_in_their_first_line_are_one(decoding: Any, word: int) -> None:
    """Passages give a word, a line break and X; the word, a line break and Y; and B. By lines the word is likeliest."""
    first, second = ({PROMPT: word, A: BREAK, A_LINE: last, BREAK: last} for last in (X, Y))
    tables = _tables([first, {**second, PROMPT + 1: word}, {PROMPT + 2: B}])
    config = GenerationConfig(max_answer_length=5, length_penalty=0.0, marginal_decoding=decoding)
    scores, is_real = PassageScoreConfig(passage_score_use="marginal"), torch.ones(1, 3, dtype=torch.bool)
    priors = torch.tensor([[0.3, 0.3, 0.4]]).log()
    with process_topology(ParallelConfig(device="cpu")) as topology:
        ((by_ids,), (by_lines,)) = (
            AnswerSearch(_TableReader(tables, lines), config, scores, topology.groups.tp).find(
                _texts(3), is_real, priors
            )
            for lines in (None, _lines(topology))
        )
    assert by_ids.ids == [B, END]
    assert by_lines.ids == [word, END]
    assert by_lines.score == pytest.approx(np.log(0.6), abs=1e-3)


def test_line_breaks_before_the_text_end_nothing_and_a_shortest_length_is_kept() -> None:
    tables = _tables([{PROMPT: BREAK, BREAK: A, A: BREAK}, {PROMPT + 1: A_LINE, A_LINE: X, X: Y}])
    with process_topology(ParallelConfig(device="cpu")) as topology:
        sources = _TableReader(tables, _lines(topology)).sources(_texts(2), torch.ones(2, 1, dtype=torch.bool))
        plain, longer = (
            generate(sources, GenerationConfig(max_answer_length=6, min_answer_length=n), topology.groups.tp).best
            for n in (0, 3)
        )
    assert _written(plain) == [[BREAK, A, END], [A_LINE, END]]
    assert plain.scores.tolist() == pytest.approx([0, 0], abs=1e-3)
    assert longer.lengths.min() >= 4
    assert longer.ids[1, :3].tolist() == [A_LINE, X, Y]


def test_tokens_of_a_vocabulary(tmp_path: Path) -> None:
    texts = ["one.\n\n two\n", "\n  \n three", "four.\n\n five\r\n"] * 9
    path = write_byte_bpe(tmp_path, texts, num_tokens=330)
    description = json.loads(path.read_text())  # others than GPT-2 have such tokens
    description["model"]["vocab"][".Ċ"] = 330
    description["model"]["merges"].append([".", "Ċ"])
    path.write_text(json.dumps(description))
    vocabulary = ByteBpeTokenizer(path)
    is_text, starts, closes = vocabulary.line_tokens()
    for number in range(vocabulary.vocab_size):
        if number in (vocabulary.special.end, vocabulary.special.pad):
            assert not is_text[number] | starts[number] | closes[number]
            continue
        text = vocabulary.decode([[number]])[0]
        assert bool(is_text[number]) == bool(text.strip())
        first = f"{text}|".splitlines()[0]
        assert bool(starts[number]) == (first != f"{text}|" and not first.strip())
        assert bool(closes[number]) == (f"{text.lstrip()}|".splitlines()[0] not in (f"{text.lstrip()}|", ""))
    assert starts.sum() > 2
    assert closes[330]
