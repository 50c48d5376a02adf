"""The encyclopedia as files in the formats of DPR, with a vocabulary of its own."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_retrieval.testing.encyclopedia.build import Ask, Encyclopedia, build_encyclopedia
from megatron_retrieval.testing.encyclopedia.kinds import load_kinds
from megatron_retrieval.testing.encyclopedia.vocabulary import train_wordpiece
from megatron_retrieval.testing.encyclopedia.words import COMMON_WORDS
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.files import atomic_directory, atomic_file, write_json
from megatron_retrieval.utils.logging import get_logger

VOCABULARY_SIZE = 3000  # pieces at most
WORD_WEIGHT = 20  # words of the language count so many times, names once: names stay in recurring pieces
MIN_PAIR_COUNT = 20  # so often a pair of pieces must occur to become one piece


@dataclass(kw_only=True, frozen=True)
class EncyclopediaConfig:
    """Generate the mini encyclopedia: passages, questions with held-out entities, and a vocabulary."""

    output: Path
    """Folder to write; must not exist, or be empty."""
    seed: int = 1
    """Names the random streams; equal seeds give equal files."""
    evaluation_share: float = 0.08
    """Share of the entities that only the evaluation asks about."""
    questions_per_fact: int = 1
    """Differently worded training questions for each fact, up to 3."""


def main(config: EncyclopediaConfig) -> None:
    """Write it, and say how much it is."""
    made = write_encyclopedia(config)
    counts = (
        f"{len(made.passages):,} passages, {len(made.train):,} training and {len(made.evaluation):,} held-out questions"
    )
    get_logger().info("wrote %s to %s", counts, config.output)


def write_encyclopedia(config: EncyclopediaConfig) -> Encyclopedia:
    """Generate the encyclopedia and write it to `config.output`, whole or not at all.

    Raises:
        DataError: the folder exists and is not empty.
    """
    with atomic_directory(config.output) as folder:
        encyclopedia = build_encyclopedia(
            seed=config.seed, evaluation_share=config.evaluation_share, questions_per_fact=config.questions_per_fact
        )
        write_passages(folder / "psgs_w100.tsv", sorted(encyclopedia.passages, key=lambda passage: int(passage.id)))
        for name, asks in (("train", encyclopedia.train), ("dev", encyclopedia.evaluation)):
            write_json(folder / f"biencoder-{name}.json", [_biencoder_entry(ask) for ask in asks])
            write_questions(folder / f"{name}.qa.csv", asks)
        with atomic_file(folder / "vocab.txt") as file:
            file.writelines(f"{piece}\n" for piece in vocabulary(encyclopedia))
    return encyclopedia


def write_passages(path: Path, passages: Iterable[Passage]) -> None:
    """DPR's passage file: `id`, `text`, `title`, separated by tabs."""
    with atomic_file(path) as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["id", "text", "title"])
        writer.writerows([passage.id, passage.text, passage.title] for passage in passages)


def write_questions(path: Path, asks: Sequence[Ask]) -> None:
    """DPR's question file: the question, a tab, the list of answers."""
    with atomic_file(path) as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([ask.text, str([ask.answer])] for ask in asks)


def vocabulary(encyclopedia: Encyclopedia) -> list[str]:
    """WordPiece pieces: the words of the language whole, names in syllables."""
    words = [*_language(), *COMMON_WORDS]
    return train_wordpiece([*words * WORD_WEIGHT, *encyclopedia.names], size=VOCABULARY_SIZE, min_count=MIN_PAIR_COUNT)


def _language() -> Iterator[str]:
    """Every sentence pattern without its name and value."""
    for kind in load_kinds().values():
        relations = kind.relations.values()
        for pattern in [kind.noun, *kind.fillers, *(text for r in relations for text in (*r.says, *r.asks))]:
            yield pattern.replace("{name}", "").replace("{value}", "")


def _biencoder_entry(ask: Ask) -> dict[str, Any]:
    return {
        "dataset": "mini_encyclopedia",
        "question": ask.text,
        "answers": [ask.answer],
        "positive_ctxs": [_context(ask.gold)],
        "negative_ctxs": [],
        "hard_negative_ctxs": [_context(passage) for passage in ask.distractors],
    }


def _context(passage: Passage) -> dict[str, Any]:
    return {"title": passage.title, "text": passage.text, "score": 0, "title_score": 0, "passage_id": passage.id}
