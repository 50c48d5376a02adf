"""Decoding over passages that are read one by one, on tables of next-token probabilities small enough to enumerate all
answers; at one rank and with the vocabulary on two."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from torch import Tensor

from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.fusion_search import AnswerSearch, Written
from megatron_retrieval.models.generation import GenerationConfig, generate
from megatron_retrieval.models.mixture import MixedSources
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.types.tokens import TokenBatch

CPU = torch.device("cpu")
#: two words, the end, and an entry without a token
WORD, OTHER, END, WIDTH = 0, 1, 2, 4
LONGEST = 3
#: all answers of up to three tokens: the last one of three may be no end
ANSWERS = [
    answer
    for length in range(1, LONGEST + 1)
    for answer in product(range(3), repeat=length)
    if END not in answer[:-1] and (answer[-1] == END or length == LONGEST)
]
EVERYTHING = GenerationConfig(max_answer_length=LONGEST, num_beams=3**LONGEST, length_penalty=0.0)
GREEDY = GenerationConfig(max_answer_length=LONGEST, length_penalty=0.0)
SEQUENCE, TOKEN = PassageScoreConfig(passage_score_use="marginal"), PassageScoreConfig(passage_score_use="token")


def _random_tables(num_passages: int) -> Tensor:
    """[S, prefixes, V] logits of the next token: every passage has its own after every prefix."""
    return 2 * torch.randn(num_passages, 2**LONGEST, 3, generator=torch.Generator().manual_seed(6))


@dataclass(frozen=True)
class _Tables:
    """Sources that predict by table; see `generation.Sources`."""

    tables: Tensor
    topology: ProcessTopology
    end_id: int = END
    device: torch.device = CPU

    @property
    def num_sources(self) -> int:
        return len(self.tables)

    def start(self) -> _TableState:
        return _TableState(self)

    def logits(self, sources: Tensor, prefixes: Tensor) -> Tensor:
        """This rank's part."""
        padded = torch.nn.functional.pad(self.tables, (0, WIDTH - 3), value=torch.finfo(torch.float32).min)
        return padded[sources, prefixes].chunk(self.topology.tp_size, 1)[self.topology.tp_rank].clone()

    def token_log_likelihoods(self, labels: Tensor) -> Tensor:
        likelihoods = torch.zeros(labels.shape)
        for source, place in product(range(labels.size(0)), range(labels.size(1))):
            prefix = 1
            for step, token in enumerate(labels[source, place].tolist()):
                if token >= 0:
                    likelihoods[source, place, step] = self.tables[source, prefix].log_softmax(0)[token]
                    prefix = 2 * prefix + token if token < END else 0
        return likelihoods


class _TableState:
    """A prefix of words is the number whose bits they are, behind a one."""

    def __init__(self, sources: _Tables) -> None:
        self._sources = sources
        self._rows, self._prefixes = torch.arange(sources.num_sources), torch.ones(sources.num_sources).long()

    def step(self, newest: Tensor | None) -> Tensor:
        if newest is not None:
            self._prefixes = (2 * self._prefixes + newest[:, 0]) % 2**LONGEST  # what follows an end is never used
        return self._sources.logits(self._rows, self._prefixes)

    def select(self, rows: Tensor | None, sources: Tensor | None) -> None:
        if rows is not None:
            self._rows, self._prefixes = self._rows[rows], self._prefixes[rows]


@dataclass(frozen=True)
class _TableReader:
    """Texts are numbers of tables."""

    tables: Tensor
    topology: ProcessTopology

    def sources(self, texts: TokenBatch, is_real: Tensor, passage_scores: Tensor | None = None) -> _Tables:
        assert is_real.size(1) == 1
        return _Tables(self.tables[texts.ids[:, 0]], self.topology)


def _find(
    topology: ProcessTopology,
    tables: Tensor,
    texts: list[list[int]],
    priors: list[list[float]],
    scores: PassageScoreConfig,
    config: GenerationConfig,
) -> list[Written]:
    """The answers to questions with these tables, -1 for fillers."""
    ids = torch.tensor(texts)
    search = AnswerSearch(_TableReader(tables, topology), config, scores, topology.groups.tp)
    batch = TokenBatch(ids.flatten()[:, None].clamp(min=0), torch.ones(ids.numel(), dtype=torch.int64))
    names = [str(row) for row in texts]
    return search.find(batch, ids >= 0, torch.tensor(priors).log(), names)


def _all_answers(num_sources: int) -> Tensor:
    rows = [[*answer, *[-1] * (LONGEST - len(answer))] for answer in ANSWERS]
    return torch.tensor(rows).expand(num_sources, -1, -1)


PRIORS = [[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]]
TEXTS = [[0, 1, 2], [3, 4, -1]]


def _enumerated(tables: Tensor, use: str) -> list[dict[tuple[int, ...], float]]:
    """p(answer) of every answer to both questions, in float64, straight from the formulas."""
    found: list[dict[tuple[int, ...], float]] = []
    for texts, priors in zip(TEXTS, PRIORS, strict=True):
        own: dict[tuple[int, ...], float] = {}
        for answer in ANSWERS:
            tokens = torch.zeros(len(texts), len(answer), dtype=torch.float64)
            for row, text in enumerate(texts):
                prefix = 1
                for place, token in enumerate(answer):
                    tokens[row, place] = tables[text, prefix].double().softmax(0)[token]
                    prefix = 2 * prefix + token
            weights = torch.tensor(priors, dtype=torch.float64)
            mixed = weights @ tokens if use == "token" else weights @ tokens.prod(1)
            own[answer] = float(mixed.prod())
        found.append(own)
    return found


def _check_enumeration(topology: ProcessTopology) -> None:
    tables = _random_tables(5)
    for scores in (SEQUENCE, TOKEN):
        expected = _enumerated(tables, scores.passage_score_use)
        for own in expected:
            assert sum(own.values()) == pytest.approx(1.0)
        config = dataclasses.replace(EVERYTHING, marginal_decoding="thorough" if scores is SEQUENCE else None)
        found = _find(topology, tables, TEXTS, PRIORS, scores, config)
        for written, own in zip(found, expected, strict=True):
            best = max(own, key=own.__getitem__)
            assert tuple(written.ids) == best
            assert math.exp(written.score) == pytest.approx(own[best], rel=1e-5)
    # the mixture scores given answers as it finds them
    owners, weights = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0.5, 0.3, 0.2, 0.9, 0.1])
    mixed = MixedSources(_Tables(tables, topology), owners, weights.log(), topology.groups.tp)
    likelihoods = mixed.token_log_likelihoods(_all_answers(2)).sum(2).exp()
    for row, own in zip(likelihoods.tolist(), _enumerated(tables, "token"), strict=True):
        assert row == pytest.approx(list(own.values()), rel=1e-5)
    everything = generate(mixed, EVERYTHING, topology.groups.tp)
    for row, own in zip(everything.scores.exp().tolist(), _enumerated(tables, "token"), strict=True):
        assert row[: len(ANSWERS)] == pytest.approx(sorted(own.values(), reverse=True), rel=1e-5)
        assert not any(row[len(ANSWERS) :])


def _check_hand_case(topology: ProcessTopology) -> None:
    """One token, A, B or C: fast decoding answers A by .24 against .18, the others B by .39."""
    tables = torch.tensor([[0.40, 0.35, 0.25], [0.15, 0.45, 0.40]]).log()[:, None].expand(-1, 2**LONGEST, -1)
    for scores, decoding, answer, share in (
        (SEQUENCE, "fast", WORD, 0.24),
        (SEQUENCE, "thorough", OTHER, 0.39),
        (TOKEN, "token", OTHER, 0.39),
    ):
        config = GenerationConfig(max_answer_length=1, marginal_decoding=decoding)
        (written,) = _find(topology, tables, [[0, 1]], [[0.6, 0.4]], scores, config)
        assert (written.ids, math.exp(written.score)) == ([answer], pytest.approx(share))
        if decoding == "thorough":
            assert written.figures == {"num_candidates": 2, "differs_from_fast": 1}
    assert written.figures == {"num_passages_used": 1}
    assert written.passage == 0, ".21 against .18"


def _check_what_must_not_matter(topology: ProcessTopology) -> None:
    """The order of passages, fillers between them, and passages without weight."""
    tables = _random_tables(5)
    for scores, decoding in ((SEQUENCE, "fast"), (SEQUENCE, "thorough"), (TOKEN, "token")):
        for search in (GREEDY, dataclasses.replace(GREEDY, num_beams=2)):
            config = dataclasses.replace(search, marginal_decoding=decoding)
            arguments = (scores, config)
            (first, second) = _find(topology, tables, TEXTS, PRIORS, *arguments)
            (turned,) = _find(topology, tables, [[2, -1, 0, 1]], [[0.2, 0.7, 0.5, 0.3]], *arguments)
            assert (turned.ids, turned.score) == (first.ids, pytest.approx(first.score, abs=1e-5))
            assert TEXTS[0][first.passage or 0] == [2, -1, 0, 1][turned.passage or 0]
            (alone,) = _find(topology, tables, [[3, 4]], [[0.9, 0.1]], *arguments)
            assert (alone.ids, alone.score) == (second.ids, pytest.approx(second.score, abs=1e-5))
            (single,) = _find(topology, tables, [[4]], [[1.0]], *arguments)
            (certain,) = _find(topology, tables, [[0, 4, 2]], [[0.0, 1.0, 0.0]], *arguments)
            assert (certain.ids, certain.score) == (single.ids, pytest.approx(single.score, abs=1e-5))


def _check_thorough(topology: ProcessTopology) -> None:
    """What thorough decoding finds is no less likely than what fast decoding finds, and now and then more."""
    tables = 2 * torch.randn(60, 2**LONGEST, 3, generator=torch.Generator().manual_seed(2))
    texts, priors = torch.arange(60).view(20, 3).tolist(), [[0.4, 0.35, 0.25]] * 20
    found = {
        decoding: _find(
            topology, tables, texts, priors, SEQUENCE, dataclasses.replace(GREEDY, marginal_decoding=decoding)
        )
        for decoding in ("fast", "thorough")
    }
    num_better = 0
    for number, (fast, thorough) in enumerate(zip(found["fast"], found["thorough"], strict=True)):
        labels = torch.tensor([[(fast.ids + [-1] * 3)[:3], (thorough.ids + [-1] * 3)[:3]]]).expand(3, -1, -1)
        of_passages = _Tables(tables[3 * number : 3 * number + 3], topology).token_log_likelihoods(labels).sum(2)
        shares = (of_passages + torch.tensor(priors[0]).log()[:, None]).logsumexp(0)
        assert shares[1] >= shares[0]
        assert thorough.score == pytest.approx(float(shares[1]), abs=1e-5)
        num_better += bool(shares[1] > shares[0])
        assert thorough.figures["differs_from_fast"] == (thorough.ids != fast.ids)
    assert 0 < num_better < 20


def _check_sampling(topology: ProcessTopology) -> list[list[int]]:
    tables = _random_tables(1).expand(2000, -1, -1)
    sources, names = _Tables(tables, topology), [str(number) for number in range(2000)]
    config = GenerationConfig(max_answer_length=1, sampling_temperature=2.0)
    drawn = generate(sources, config, topology.groups.tp, names).best.ids[:, 0]
    shares, expected = torch.bincount(drawn, minlength=3) / 2000, (tables[0, 1] / 2).softmax(0)
    assert ((shares - expected).abs() < 3 * (expected * (1 - expected) / 2000).sqrt()).all()
    nucleus = dataclasses.replace(config, sampling_top_p=float(expected.max()) - 1e-3)
    assert set(generate(sources, nucleus, topology.groups.tp, names).best.ids[:, 0].tolist()) == {
        int(expected.argmax())
    }
    # draws are the question's own
    longer = dataclasses.replace(config, max_answer_length=LONGEST)
    many, few = (
        generate(_Tables(tables[:n], topology), longer, topology.groups.tp, names[50 - n : 50]).best for n in (50, 7)
    )
    assert many.ids[-7:].tolist() == few.ids.tolist()
    other = generate(
        _Tables(tables[:50], topology), dataclasses.replace(longer, sampling_seed=1), topology.groups.tp, names[:50]
    )
    assert other.best.ids.tolist() != many.ids.tolist()
    drawn_answers: list[list[int]] = many.ids.tolist()
    return drawn_answers


def _check(topology: ProcessTopology) -> list[list[int]]:
    _check_enumeration(topology)
    _check_hand_case(topology)
    _check_what_must_not_matter(topology)
    _check_thorough(topology)
    return _check_sampling(topology)


def test_decoding_is_exact_at_any_size() -> None:
    (one,) = run_on_ranks(_check, 1)
    assert run_on_ranks(_check, 2, tensor_model_parallel_size=2) == [one, one]


@pytest.mark.parametrize(
    ("given", "use", "found"),
    [
        ({}, "none", ("concatenated", None)),
        ({}, "bias", ("concatenated", None)),
        ({}, "marginal", ("sequence", "fast")),
        ({}, "token", ("token", "token")),
        ({"marginal_decoding": "thorough"}, "token", ("sequence", "thorough")),
        ({"marginal_decoding": "token"}, "none", ("token", "token")),
        ({"answer_from": "concatenated"}, "token", ("concatenated", None)),
        ({"answer_from": "sequence"}, "bias", ("sequence", "fast")),
    ],
)
def test_a_reader_answers_as_it_was_trained(given: dict[str, str], use: str, found: tuple[str, str | None]) -> None:
    scores = PassageScoreConfig(passage_score_use=use)  # type: ignore[arg-type]
    config = GenerationConfig(**given).resolved(scores)  # type: ignore[arg-type]
    assert (config.answer_from, config.marginal_decoding) == found


def test_ways_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="--answer-from token and --marginal-decoding fast contradict"):
        GenerationConfig(answer_from="token", marginal_decoding="fast").resolved(SEQUENCE)
    with pytest.raises(ConfigError, match="--answer-from concatenated and --marginal-decoding fast contradict"):
        GenerationConfig(answer_from="concatenated", marginal_decoding="fast").resolved(SEQUENCE)
    with pytest.raises(ConfigError, match="--sampling-temperature 1 draws one answer: leave out --num-beams 2"):
        GenerationConfig(sampling_temperature=1.0, num_beams=2)
