"""A reader that minds its passages' scores, against plain torch: text by text, token by token, without a cache; at one
and at two ranks, and from its checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_retrieval.applications.open_reader import ReaderConfig, open_reader
from megatron_retrieval.checkpoint.kinds.fusion_reader import FUSION_READER
from megatron_retrieval.checkpoint.kinds.t5 import T5_KIND
from megatron_retrieval.data.files.passage_questions import PassagesToReadConfig, ReaderQuestion
from megatron_retrieval.data.layouts.fusion import FusionFormatConfig, FusionLayout
from megatron_retrieval.data.stores.ragged import tokenize
from megatron_retrieval.errors import CheckpointError
from megatron_retrieval.evaluation.generated_answers import GeneratedAnswerer
from megatron_retrieval.models.fusion_reader import FusionReader
from megatron_retrieval.models.generation import GenerationConfig
from megatron_retrieval.models.memory import EncodedMemory
from megatron_retrieval.models.passage_scores import PassageScoreConfig, PassageScoreUse
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.readers.left_open import LeftOpenConfig
from megatron_retrieval.readers.settings import ReaderAnswersConfig
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_sentencepiece import NUM_PIECES, write_sentencepiece
from megatron_retrieval.tokenizers.sentencepiece import SentencePieceTokenizer
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.types.tokens import TokenBatch

SHAPE = T5Config(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    ffn_hidden_size=64,
    vocab_size=NUM_PIECES,
    untie_embeddings_and_output_weights=True,
    relative_attention_num_buckets=8,
)
LAYOUT = FusionFormatConfig(question_seq_length=16, reader_seq_length=48)
GENERATION = GenerationConfig(max_answer_length=5)
BIAS = PassageScoreConfig(passage_score_use="bias", passage_score_weight=1.7, passage_score_divisor=2.5)
MARGINAL = PassageScoreConfig(passage_score_use="marginal", passage_score_divisor=2.5)
TOKEN = PassageScoreConfig(passage_score_use="token", passage_score_divisor=2.5)
WORDS = ("Paris", "the river", "in 1889", "Rome", "a tower", "wrote", "Denmark", "prince", "the play", "city")
Found = list[tuple[str, float, int | None]]


def _questions() -> list[ReaderQuestion]:
    """With three passages, one, none, two without scores, and with one passage twice beside another."""
    random = torch.Generator().manual_seed(3)

    def passage(number: int) -> Passage:
        words = [WORDS[place] for place in torch.randint(len(WORDS), (2 + number % 4,), generator=random).tolist()]
        return Passage(str(number), WORDS[number % len(WORDS)], " ".join(words))

    first, second, third, fourth, fifth, sixth, single, other, twice = map(passage, range(9))
    return [
        ReaderQuestion("a", "who wrote the play?", (), (first, second, third), (9.0, 4.0, 6.5)),
        ReaderQuestion("b", "where is the tower", (), (single,), (3.0,)),
        ReaderQuestion("c", "did it?", ()),
        ReaderQuestion("d", "the capital of Italy?", (), (fourth, fifth)),
        ReaderQuestion("e", "a river", (), (other, twice, twice), (2.0, 4.0, 1.5)),
        ReaderQuestion("f", "the prince", (), (sixth, third), (-8.0, 8.0)),
    ]


def _reader(topology: ProcessTopology) -> FusionReader:
    """One whose answers depend on what it reads, are of one mind, and end sooner or later."""
    model = T5(SHAPE, topology, seed=13).eval()
    assert model.output is not None
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.cross_attention.linear_proj.weight.mul_(6)
            layer.cross_attention.linear_q.weight.mul_(3)
        if topology.tp_rank == 0:
            model.output[0] *= 0  # padding says nothing
            model.output[model.end_id] *= 2
    return FusionReader(model)


def _answer(
    topology: ProcessTopology,
    model_file: str,
    scores: PassageScoreConfig,
    questions: list[ReaderQuestion],
    search: GenerationConfig = GENERATION,
    micro_batch_size: int = 7,
) -> Found:
    tokenizer = SentencePieceTokenizer(model_file)
    answerer = GeneratedAnswerer(
        _reader(topology),
        tokenizer,
        FusionLayout(LAYOUT, tokenizer),
        search,
        topology,
        passage_scores=scores,
        micro_batch_size=micro_batch_size,
    )
    return [(found.text, found.score, found.passage) for found in answerer.answer(questions)]


def _states(reader: FusionReader, question: ReaderQuestion, model_file: str) -> list[Tensor]:
    """[1, T, D] of each of the question's texts."""
    tokenizer = SentencePieceTokenizer(model_file)
    layout, asked = FusionLayout(LAYOUT, tokenizer), tokenize(tokenizer, [question.text])
    if not question.passages:
        return [reader.model.encoder(layout.alone(asked))]
    states = []
    for passage in question.passages:
        text = layout.with_passages(asked, tokenize(tokenizer, [passage.title]), tokenize(tokenizer, [passage.text]))
        length = int(text.lengths)
        states.append(reader.model.encoder(TokenBatch(text.ids[:, :length], text.lengths)))
    return states


def _greedy(reader: FusionReader, states: Tensor, bias: Tensor) -> tuple[list[int], float]:
    """The likeliest next token, again and again, and the log-likelihood of all."""
    ids, likelihood = [reader.model.start_id], 0.0
    while len(ids) <= GENERATION.max_answer_length and ids[-1] != reader.model.end_id:
        logits = reader.model.logits(
            reader.model.decoder(torch.tensor([ids]), EncodedMemory(states, bias[None, None, None]))
        )
        best = logits[0, -1].log_softmax(0).max(0)
        ids.append(int(best.indices))
        likelihood += float(best.values)
    return ids[1:], likelihood


def _greedy_mixture(reader: FusionReader, states: list[Tensor], priors: list[float]) -> tuple[list[int], float, int]:
    """The likeliest next token of all passages, again and again, with the log-likelihood of all, and the passage whose
    share in it is the greatest."""
    ids, likelihood, shares = [reader.model.start_id], 0.0, torch.tensor(priors).log()
    while len(ids) <= GENERATION.max_answer_length and ids[-1] != reader.model.end_id:
        logits = [reader.model.logits(reader.model.decoder(torch.tensor([ids]), EncodedMemory(own))) for own in states]
        each = torch.stack([own[0, -1].log_softmax(0) for own in logits])
        best = (each + torch.tensor(priors).log()[:, None]).logsumexp(0).max(0)
        ids.append(int(best.indices))
        likelihood, shares = likelihood + float(best.values), shares + each[:, ids[-1]]
    return ids[1:], likelihood, int(shares.argmax())


def _priors(question: ReaderQuestion, divisor: float) -> list[float]:
    scores = question.scores or (0.0,) * max(1, len(question.passages))
    weights = [math.exp(score / divisor) for score in scores]
    return [weight / sum(weights) for weight in weights]


@torch.no_grad()
def _expected(topology: ProcessTopology, model_file: str, scores: PassageScoreConfig) -> Found:
    reader, tokenizer, found = _reader(topology), SentencePieceTokenizer(model_file), []
    for question in _questions():
        states = _states(reader, question, model_file)
        priors = _priors(question, scores.passage_score_divisor)
        place: int | None = None
        if scores.passage_score_use == "token":
            answer, score, best_place = _greedy_mixture(reader, states, priors)
            place = best_place if question.passages else None
        elif scores.passage_score_use == "marginal":
            sums: dict[tuple[int, ...], float] = {}
            shares = []
            for own, prior in zip(states, priors, strict=True):
                ids, likelihood = _greedy(reader, own, torch.zeros(own.size(1)))
                shares.append((tuple(ids), prior * math.exp(likelihood)))
                sums[tuple(ids)] = sums.get(tuple(ids), 0.0) + shares[-1][1]
            best = max(sums, key=sums.__getitem__)
            answer, score = list(best), math.log(sums[best])
            if question.passages:
                place = max(range(len(shares)), key=lambda k: shares[k][1] * (shares[k][0] == best))
        else:
            weight = scores.passage_score_weight if scores.passage_score_use == "bias" else 0.0
            biases = [torch.full((own.size(1),), weight * math.log(p)) for own, p in zip(states, priors, strict=True)]
            answer, likelihood = _greedy(reader, torch.cat(states, 1), torch.cat(biases))
            score = likelihood / len(answer)
        found.append((tokenizer.decode([answer])[0].strip(), score, place))
    return found


def _check(found: Found, expected: Found) -> None:
    assert [(text, place) for text, _, place in found] == [(text, place) for text, _, place in expected]
    assert [score for _, score, _ in found] == pytest.approx([score for _, score, _ in expected], rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_sentencepiece(tmp_path_factory.mktemp("scores") / "tiny.model"))


@pytest.fixture(scope="module")
def expected(model_file: str) -> dict[PassageScoreUse, Found]:
    uses: tuple[PassageScoreConfig, ...] = (PassageScoreConfig(), BIAS, MARGINAL, TOKEN)
    found = {scores.passage_score_use: run_on_ranks(_expected, 1, model_file, scores)[0] for scores in uses}
    texts = [tuple(text for text, _, _ in answers) for answers in found.values()]
    assert len(set(texts)) >= 3
    return found


@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize(
    "scores", [PassageScoreConfig(), BIAS, MARGINAL, TOKEN], ids=lambda scores: scores.passage_score_use
)
def test_answers_are_those_of_plain_torch(
    model_file: str, expected: dict[PassageScoreUse, Found], scores: PassageScoreConfig, tp_size: int
) -> None:
    arguments = (model_file, scores, _questions())
    for found in run_on_ranks(_answer, tp_size, *arguments, tensor_model_parallel_size=tp_size):
        _check(found, expected[scores.passage_score_use])


def _variants(topology: ProcessTopology, model_file: str) -> bool:
    """What must not matter does not."""
    questions = _questions()
    equal = [dataclasses.replace(question, scores=(7.0,) * len(question.passages)) for question in questions]
    plain = _answer(topology, model_file, PassageScoreConfig(), questions)
    for scores in (BIAS, dataclasses.replace(BIAS, passage_score_weight=0.0)):
        # a bias that all tokens have in common is none
        _check(_answer(topology, model_file, scores, equal), plain)
    _check(_answer(topology, model_file, dataclasses.replace(BIAS, passage_score_weight=0.0), questions), plain)
    for scores, search in ((BIAS, GENERATION), (MARGINAL, dataclasses.replace(GENERATION, num_beams=3))):
        whole = _answer(topology, model_file, scores, questions, search, 64)
        for number, question in enumerate(questions):
            _check(_answer(topology, model_file, scores, [question], search), whole[number : number + 1])
    return True


def test_what_must_not_matter(model_file: str) -> None:
    assert run_on_ranks(_variants, 1, model_file) == [True]


def _agreeing(topology: ProcessTopology, model_file: str) -> bool:
    """A passage that is read twice wins over a likelier one, but not when it is read once."""
    (question,) = (question for question in _questions() if question.id == "e")
    one, two = (dataclasses.replace(question, passages=(passage,), scores=()) for passage in question.passages[:2])
    (first, first_score, _), (second, second_score, _) = _answer(topology, model_file, MARGINAL, [one, two])
    assert first != second
    # p(z | q) p(a | q, z) of the first passage is 1.5 times that of the second
    score = MARGINAL.passage_score_divisor * (math.log(1.5) + second_score - first_score)
    twice = dataclasses.replace(question, scores=(score, 0.0, 0.0))
    once = dataclasses.replace(question, passages=question.passages[:2], scores=(score, 0.0))
    found = _answer(topology, model_file, MARGINAL, [twice, once])
    assert [(text, place) for text, _, place in found] == [(second, 1), (first, 0)]
    weights = (math.exp(score / MARGINAL.passage_score_divisor), 1.0, 1.0)
    assert found[0][1] == pytest.approx(math.log(2 / sum(weights)) + second_score, abs=1e-5)
    return True


def test_agreeing_passages_win(model_file: str) -> None:
    assert run_on_ranks(_agreeing, 1, model_file) == [True]


def _from_checkpoint(topology: ProcessTopology, folder: str, model_file: str) -> bool:
    """Saved, described, opened and asked."""
    model = _reader(topology).model
    vocabulary = SentencePieceTokenizer(model_file)
    T5_KIND.save(f"{folder}/t5", model, topology, SHAPE, vocabulary)
    start = FUSION_READER.describe(f"{folder}/t5", FUSION_READER.reads)
    assert start.passage_scores == PassageScoreConfig()
    reading = PassagesToReadConfig()
    for name, scores in (("old", None), ("bias", BIAS), ("marginal", MARGINAL), ("token", TOKEN)):
        further = (LAYOUT,) if scores is None else (LAYOUT, scores)
        FUSION_READER.save(f"{folder}/{name}", model, topology, SHAPE, vocabulary, *further)
        assert FUSION_READER.describe(f"{folder}/{name}").passage_scores == (scores or PassageScoreConfig())
        settings = ReaderConfig(reader=Path(folder) / name, answers=ReaderAnswersConfig(max_answer_length=5))
        opened = open_reader(settings, reading, topology)
        found = [(answer.text, answer.score, answer.passage) for answer in opened.reader.answer(_questions())]
        _check(found, _answer(topology, model_file, scores or PassageScoreConfig(), _questions()))
        assert opened.protocol["passage_score_use"] == ("none" if name == "old" else name)
        decoding = {"marginal": "fast", "token": "token"}.get(name)
        assert opened.protocol["marginal_decoding"] == decoding
        assert opened.protocol["passage_score_divisor"] == (1.0 if name == "old" else 2.5)
        # a reranker's scores are of another scale than those that it was trained with
        for divisor, left_open in ((1.0, LeftOpenConfig()), (0.5, LeftOpenConfig(temperature=0.5))):
            again = dataclasses.replace(settings, left_open=left_open)
            opened = open_reader(again, reading, topology, scores_of="reranker")
            assert opened.protocol["passage_score_divisor"] == divisor
            found = [(answer.text, answer.score, answer.passage) for answer in opened.reader.answer(_questions())]
            expected = dataclasses.replace(scores or PassageScoreConfig(), passage_score_divisor=divisor)
            _check(found, _answer(topology, model_file, expected, _questions()))
    return True


def test_a_checkpoint_says_what_to_do_with_scores(tmp_path: Path, model_file: str) -> None:
    assert run_on_ranks(_from_checkpoint, 1, str(tmp_path), model_file) == [True]
    old = json.loads((tmp_path / "old" / "iter_0000000" / "manifest.json").read_text())
    assert not [key for key in old["config"] if "score" in key]
    manifest = tmp_path / "bias" / "iter_0000000" / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"passage-score-use": "bias"', '"passage-score-use": "votes"'))
    with pytest.raises(
        CheckpointError, match=r"manifest.json: the use of passage scores 'votes' is none of none, bias"
    ):
        FUSION_READER.describe(tmp_path / "bias")
    manifest.write_text(text.replace('"passage-score-weight"', '"weight"'))
    with pytest.raises(CheckpointError, match="the setting 'passage-score-weight' is missing"):
        FUSION_READER.describe(tmp_path / "bias")
