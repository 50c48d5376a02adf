"""Held-out retrieval: what decides whether an adapted encoder is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.applications.learn.read import write_passages
from megatron_retrieval.applications.search import SearchConfig, open_search
from megatron_retrieval.data.files.dpr_json import biencoder_context, write_json_list
from megatron_retrieval.data.files.question_files import read_questions
from megatron_retrieval.data.files.sentences import split_sentences
from megatron_retrieval.evaluation.answer_matching import AnswerMatchConfig, AnswerMatcher
from megatron_retrieval.evaluation.intervals import paired_difference
from megatron_retrieval.evaluation.rank_metrics import NOT_FOUND, UNKNOWN, Ranks, hits_at
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.files import read_json
from megatron_retrieval.utils.seeds import fractions, generator

DEPTH = 100
#: at most this share of the passages gives held-out questions
_HELD_OUT_SHARE = 0.1
#: fewer words in a sentence are no question, fewer in the rest no passage
_LEAST_WORDS = 6


@dataclass(frozen=True)
class HeldOut:
    """Files of held-out retrieval.

    Attributes:
        passages: that are searched.
        questions: DPR's training data.
        rest: passages to learn from.
    """

    passages: Path
    questions: Path
    rest: Path

    @property
    def num_questions(self) -> int:
        """Perhaps 0."""
        return len(read_json(self.questions))


def hold_out_sentences(passages: Sequence[Passage], folder: Path, *, most: int, language: str, seed: int) -> HeldOut:
    """Make questions of sentences, each taken out of its passage, as ICT does; nothing is learned from these passages.

    Args:
        most: questions.
    """
    files = HeldOut(folder / "passages.tsv", folder / "questions.json", folder / "rest.tsv")
    if files.questions.exists():  # written last; what was built of the others depends on when they were written
        return files
    draws = fractions(np.arange(len(passages)), seed, "held-out-passages")
    chosen = set(np.argsort(draws)[: min(most, round(_HELD_OUT_SHARE * len(passages)))].tolist())
    questions: list[dict[str, Any]] = []
    held: dict[int, Passage] = {}
    for row in sorted(chosen):
        if (pair := _question(passages[row], language, seed)) is not None:
            question, held[row] = pair
            context = biencoder_context(held[row], score=0)
            questions.append({"question": question, "answers": [], "positive_ctxs": [context]})
    write_passages(files.passages, (held.get(row, passage) for row, passage in enumerate(passages)))
    write_passages(files.rest, (passage for row, passage in enumerate(passages) if row not in held))
    write_json_list(files.questions, questions)
    return files


def _question(passage: Passage, language: str, seed: int) -> tuple[str, Passage] | None:
    """A sentence of the passage, and the passage without it."""
    sentences = split_sentences(passage.text, language)
    long_enough = [number for number, sentence in enumerate(sentences) if len(sentence.split()) >= _LEAST_WORDS]
    if len(sentences) < 2 or not long_enough:
        return None
    number = long_enough[int(generator(seed, "held-out-sentence", passage.id).integers(len(long_enough)))]
    rest = " ".join(sentences[:number] + sentences[number + 1 :])
    if len(rest.split()) < _LEAST_WORDS:
        return None
    return sentences[number], Passage(passage.id, passage.title, rest)


def found_ranks(search: SearchConfig, questions: Path, encode: EncodeConfig, topology: ProcessTopology) -> Ranks:
    """Rank of each question's gold passage or, where none of the evidence is known, of the first with an answer; of
    those questions alone that have one or the other, perhaps none."""
    session = open_search(search, encode, topology)
    asked = list(read_questions(questions))
    matcher = AnswerMatcher(AnswerMatchConfig())
    found = session.evaluate(asked, matcher, topology, depth=DEPTH, micro_batch_size=encode.micro_batch_size)
    ranks = found.ranks
    best: Ranks = np.where(ranks.gold != UNKNOWN, ranks.gold, ranks.answer)
    return best[best != UNKNOWN]


def figures(ranks: Ranks) -> dict[str, float]:
    """Recall and mean reciprocal rank."""
    recalls = {f"recall@{k}": float(hits_at(ranks, k).mean()) for k in (1, 5, 20)}
    return recalls | {"mrr": float(_reciprocal(ranks).mean())}


def is_better(before: Ranks, after: Ranks) -> tuple[bool, dict[str, float]]:
    """Whether the mean reciprocal rank rose by more than chance explains (the 95 % interval is above 0), and how."""
    difference = paired_difference(_reciprocal(before), _reciprocal(after))
    return difference.low > 0, {"mrr": difference.mean, "low": difference.low, "high": difference.high}


def _reciprocal(ranks: Ranks) -> NDArray[np.float64]:
    return np.where(ranks > NOT_FOUND, 1.0 / np.maximum(ranks, 1), 0.0)
