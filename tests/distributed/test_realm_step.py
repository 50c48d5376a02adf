"""REALM: a masked language model reads each masked text with each passage; gradients are those of a plain, dense
computation, at any layout of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from end_to_end_setting import SHAPE, TEXT_FORMAT, WORDS, Found, Setting, best_passages, write_inputs
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.data.examples.batches import Share
from megatron_retrieval.data.examples.open_questions import AskedBatch
from megatron_retrieval.data.examples.retrieved_masks import RetrievedMasks
from megatron_retrieval.data.files.passage_questions import ReaderQuestion
from megatron_retrieval.data.layouts.masked import MaskedFormatConfig
from megatron_retrieval.data.layouts.sequences import format_questions
from megatron_retrieval.data.stores.ragged import Ragged
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.evaluation.mask_filling import MaskFiller
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.models.passage_scores import PassageScoreConfig
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.training.steps.masked_readings import MaskedReadings
from megatron_retrieval.types.search import FILLER_ROW, NULL_ROW
from megatron_retrieval.types.tokens import TokenBatch

K, NUM_TEXTS, MASK = 3, 5, 4
LAYOUT = MaskedFormatConfig(question_seq_length=6, reader_seq_length=14)


class MaskedWords:
    """Text n is that of passage n, which is no candidate, with its first n % 3 + 1 words hidden; a BatchSource."""

    def __init__(self, setting: RealmSetting) -> None:
        self._setting = setting

    def __len__(self) -> int:
        return NUM_TEXTS

    def batch(
        self, indices: Sequence[int], epoch: int, first_position: int, dp_rank: int = 0, dp_size: int = 1
    ) -> AskedBatch:
        """See BatchSource."""
        share = Share.of(len(indices), dp_rank, dp_size)
        own = list(indices[share.own]) or list(indices[:1])
        texts = self._setting.evidence.token_columns(own)[1]
        hidden = [row % 3 + 1 for row in own]
        masked = [[MASK] * many + text[many:] for text, many in zip(map(list, texts_of(texts)), hidden, strict=True)]
        targets = [text[:many] for text, many in zip(texts_of(texts), hidden, strict=True)]
        questions = Ragged.from_sequences(masked, np.int32)
        return AskedBatch(
            format_questions(questions, self._setting.tokenizer.special, TEXT_FORMAT.query_seq_length),
            questions,
            Ragged.from_sequences(targets, np.int32),
            tuple(Ragged.from_sequences([target], np.int32) for target in targets),
            torch.tensor(own)[:, None],
            len(indices),
            is_filler=share.num_real == 0,
        )


def texts_of(texts: Ragged) -> list[list[int]]:
    """As lists."""
    return [texts[row].tolist() for row in range(len(texts))]


class RealmSetting(Setting):
    """With a masked language model."""

    def __init__(self, topology: ProcessTopology, folder: str) -> None:
        self.reader = MaskedLanguageModel(BertConfig(**SHAPE), topology, seed=2)
        super().__init__(topology, Path(folder), self.reader, K, null_passage=True)
        self.questions: Any = MaskedWords(self)
        self.texts = RetrievedMasks(self.evidence, LAYOUT, self.tokenizer)
        self.readings = MaskedReadings(self.reader, self.texts, topology, batch_size=4)


def _steps(topology: ProcessTopology, folder: str) -> Found:
    found: Found = {}
    for objective in ("realm", "individual-topk", "rag-token"):
        setting = RealmSetting(topology, folder)
        found[objective] = setting.step(setting.readings, objective)
    return found


def _likelihoods(setting: RealmSetting, masked: list[int], hidden: list[int], row: int) -> Tensor:
    """[L] of what is hidden: [CLS] masked text [SEP] text [SEP] by hand, the second part of segment 1."""
    asked = [2, *masked, 3]
    passage = [] if row == NULL_ROW else setting.evidence.token_columns([row])[1][0].tolist()
    room = LAYOUT.reader_seq_length - len(asked) - 1
    ids = torch.tensor([asked if row == NULL_ROW else [*asked, *passage[:room], 3]])
    segments = (torch.arange(ids.size(1)) >= len(asked)).long()[None]
    places = torch.arange(1, len(hidden) + 1)
    logits = setting.reader(TokenBatch(ids, torch.tensor([ids.size(1)])), places, segments)
    return logits.log_softmax(1)[torch.arange(len(hidden)), torch.tensor(hidden)]


def _dense(topology: ProcessTopology, folder: str) -> Found:
    found: Found = {}
    for objective in ("realm", "individual-topk", "rag-token"):
        setting = RealmSetting(topology, folder)
        setting.model.train()
        encode, special = setting.model.retriever.encode_queries, setting.tokenizer.special
        of_tokens, of_texts, alone, utility = [], [], 0.0, 0.0
        for row in range(NUM_TEXTS):
            batch = setting.questions.batch([row], 0, 0)
            masked, hidden = (texts_of(part)[0] for part in (batch.reader_questions, batch.targets))
            query = encode(format_questions(batch.reader_questions, special, TEXT_FORMAT.query_seq_length))[0]
            own = setting.evidence.token_columns([row])[1]
            assert masked != texts_of(own)[0]
            best, scores = best_passages(setting, query, K + 1, null_passage=True)
            kept = [place for place, candidate in enumerate(best) if candidate != row][: K - 1]
            kept = [*[place for place in kept if best[place] != NULL_ROW][: K - 1], len(best) - 1]
            priors = F.log_softmax(scores[kept] / 4, 0)
            each = torch.stack([_likelihoods(setting, masked, hidden, best[place]) for place in kept])
            of_tokens.append((priors[:, None] + each).logsumexp(0))
            of_texts.append((priors + each.sum(1)).logsumexp(0))
            alone += each[-1].sum().item()
            utility += (of_tokens[-1] - each[-1]).sum().item()
        num_tokens = sum(map(len, of_tokens))
        loss = {
            "realm": -torch.cat(of_tokens).sum() / num_tokens,
            "individual-topk": -torch.stack(of_texts).mean(),
            "rag-token": -torch.cat(of_tokens).sum() / NUM_TEXTS,
        }[objective]
        figures = {"alone": alone / NUM_TEXTS, "utility": utility / num_tokens}
        found[objective] = {**setting.dense_step(loss), **figures}
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("realm"), {WORDS[0]: [WORDS[1]]})


def test_gradients_are_those_of_a_dense_computation(folder: Path) -> None:
    """Tokens are counted over all ranks, the second of which has fewer texts than the first; own passages are no
    candidates, the null passage is."""
    (dense,) = run_on_ranks(_dense, 1, str(folder))
    for num_ranks, tp_size in ((1, 1), (2, 1), (2, 2)):
        found = run_on_ranks(_steps, num_ranks, str(folder), tensor_model_parallel_size=tp_size)[0]
        for objective, wanted in dense.items():
            for metrics in (found[objective]["metrics"], found[objective]["evaluated"]):
                assert metrics["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
                if objective == "realm":
                    assert metrics["retrieval_utility"] == pytest.approx(wanted["utility"], rel=1e-4)
            assert found[objective]["evaluated"]["log_likelihood_alone"] == pytest.approx(wanted["alone"], rel=1e-5)
            for name, gradient in wanted["gradients"].items():
                torch.testing.assert_close(found[objective]["gradients"][name], gradient, rtol=1e-4, atol=1e-6)
    learning = {name for name, gradient in dense["realm"]["gradients"].items() if gradient.any()}
    assert {name.split(".")[1] for name in learning} >= {"towers", "bert", "head"}


def _fill(topology: ProcessTopology, folder: str) -> dict[str, Any]:
    """What is put in the place of two masks, and what a plain computation finds likeliest."""
    setting = RealmSetting(topology, folder)
    setting.model.eval()
    masked, scores = [MASK, 9, MASK], (1.5, -0.5)
    vocabulary: Any = KnownTexts(setting.tokenizer, {"masked": masked})
    passages = tuple(setting.evidence.passages([1, 4]))
    filler = MaskFiller(setting.reader, vocabulary, LAYOUT, topology, PassageScoreConfig(passage_score_divisor=2.0))
    asked = [ReaderQuestion("1", "masked", (), found, own) for found, own in ((passages, scores), ((), ()))]
    both, alone = filler.answer(asked)
    assert filler.answer([ReaderQuestion("2", "w1 w2", (), passages, scores)])[0].text == ""
    every = [[first, second] for first in range(45) for second in range(45)] if topology.world_size == 1 else []
    wanted = {}
    for name, rows, weights in (("both", [1, 4], torch.tensor(scores) / 2), ("alone", [NULL_ROW], torch.zeros(1))):
        likelihoods = [_mask_likelihoods(setting, masked, row) for row in rows] if every else []
        if likelihoods:
            mixed = (weights.log_softmax(0)[:, None, None] + torch.stack(likelihoods)).logsumexp(0)
            best = max(every, key=lambda ids: float(mixed[0, ids[0]] + mixed[1, ids[1]]))
            wanted[name] = setting.tokenizer.decode([best])[0]
    return {"both": both.text, "alone": alone.text, "wanted": wanted, "score": both.score}


def _mask_likelihoods(setting: RealmSetting, masked: list[int], row: int) -> Tensor:
    """[2, V] of the first and the third token."""
    asked = [2, *masked, 3]
    passage = [] if row == NULL_ROW else [*setting.evidence.token_columns([row])[1][0].tolist(), 3]
    ids = torch.tensor([[*asked, *passage]])
    segments = (torch.arange(ids.size(1)) >= len(asked)).long()[None]
    with torch.no_grad():
        logits = setting.reader(TokenBatch(ids, torch.tensor([ids.size(1)])), torch.tensor([1, 3]), segments)
    return logits.log_softmax(1)


def test_masks_are_filled_with_what_all_passages_together_make_likeliest(folder: Path) -> None:
    (found,) = run_on_ranks(_fill, 1, str(folder))
    assert {name: found[name] for name in ("both", "alone")} == found["wanted"]
    for rank in run_on_ranks(_fill, 2, str(folder), tensor_model_parallel_size=2):
        assert (rank["both"], rank["alone"]) == (found["both"], found["alone"])
        assert rank["score"] == pytest.approx(found["score"], rel=1e-5)


class KnownTexts:
    """A vocabulary with a text of its own, which may hold masks."""

    def __init__(self, vocabulary: Any, known: dict[str, list[int]]) -> None:
        self._vocabulary, self._known = vocabulary, known

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vocabulary, name)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """See Vocabulary."""
        return [self._known.get(text) or self._vocabulary.encode([text])[0] for text in texts]


def _cut_masks(topology: ProcessTopology, folder: str) -> str:
    """What is said where masks are beyond the tokens that the reader sees, and what is read without any passage."""
    setting = RealmSetting(topology, folder)
    questions = Ragged.from_sequences([[9, MASK, 8]], np.int32)
    read = setting.texts.find(questions, Ragged.from_sequences([[7]], np.int32), np.array([[FILLER_ROW, FILLER_ROW]]))
    assert read.slots.tolist() == [0]
    length = int(read.sequences.tokens.lengths[0])
    assert read.sequences.tokens.ids[0, :length].tolist() == [2, 9, MASK, 8, 3]
    many = Ragged.from_sequences([[MASK] * 11], np.int32)
    with pytest.raises(ConfigError) as error:
        setting.texts.find(many, Ragged.from_sequences([[7] * 11], np.int32), np.array([[0]]))
    return str(error.value)


def test_masks_are_never_cut_in_silence(folder: Path) -> None:
    (message,) = run_on_ranks(_cut_masks, 1, str(folder))
    assert "a text hides 11 tokens, of which 6 are among the first 6 that its reader sees" in message
