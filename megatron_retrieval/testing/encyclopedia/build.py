"""Writes the articles and the questions of the mini encyclopedia."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from megatron_retrieval.testing.encyclopedia.kinds import Kind, load_kinds
from megatron_retrieval.testing.encyclopedia.values import ValueMaker
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.answer_text import normalized
from megatron_retrieval.utils.seeds import generator

Item = TypeVar("Item")

NOUN_SHARE = 0.4  # sentences after the first that say "the town" instead of its name
FILLERS = (1, 2)  # sentences without facts per passage, at least and at most
MAX_ANSWER_PASSAGES = 12  # an answer that more passages contain is not asked for: it would be found by chance


@dataclass(frozen=True)
class Entity:
    """One subject of the encyclopedia with the values of all its relations."""

    name: str
    kind: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Ask:
    """One question about one fact.

    Attributes:
        text: the question.
        answer: the value of the relation.
        gold: the passage that states it.
        distractors: passages that look alike and do not state it: the same entity, then the same relation.
    """

    text: str
    answer: str
    gold: Passage
    distractors: tuple[Passage, ...]


@dataclass(frozen=True)
class Encyclopedia:
    """All passages, and questions about two disjoint sets of entities."""

    passages: tuple[Passage, ...]
    train: tuple[Ask, ...]
    evaluation: tuple[Ask, ...]
    names: tuple[str, ...]
    """Names of the entities and values of their facts, each once."""


@dataclass(frozen=True)
class _Article:
    """The passages of one entity, each with the relations that it tells."""

    entity: Entity
    passages: tuple[Passage, ...]


def build_encyclopedia(*, seed: int = 1, evaluation_share: float = 0.08, questions_per_fact: int = 1) -> Encyclopedia:
    """Make the whole encyclopedia; the same arguments give the same text on every machine.

    Args:
        seed: names the random streams.
        evaluation_share: share of the entities that are asked about in the evaluation only.
        questions_per_fact: differently worded training questions per fact.
    """
    entities = list(_entities(generator(seed, "entities")))
    articles = _write_articles(entities, generator(seed, "articles"))
    random = generator(seed, "questions")
    held_out = random.random(len(entities)) < evaluation_share
    train: list[Ask] = []
    evaluation: list[Ask] = []
    passages = tuple(passage for article in articles for passage in article.passages)
    is_common = CommonAnswers(passages)
    for article, is_held_out in zip(articles, held_out, strict=True):
        asks = _ask(article, articles, random, 1 if is_held_out else questions_per_fact)
        (evaluation if is_held_out else train).extend(ask for ask in asks if not is_common(ask.answer))
    names = dict.fromkeys(text for entity in entities for text in (entity.name, *entity.values.values()))
    return Encyclopedia(passages, tuple(train), tuple(evaluation), tuple(names))


class CommonAnswers:
    """Tells whether more than `MAX_ANSWER_PASSAGES` passages contain an answer."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._texts = [normalized(passage.text) for passage in passages]
        self._rows: dict[str, list[int]] = {}
        for row, text in enumerate(self._texts):
            for token in set(text.split()):
                self._rows.setdefault(token, []).append(row)

    def __call__(self, answer: str) -> bool:
        text = normalized(answer)
        rarest = min((self._rows.get(token, []) for token in text.split()), key=len)
        return sum(text in self._texts[row] for row in rarest) > MAX_ANSWER_PASSAGES


def _entities(random: np.random.Generator) -> Iterator[Entity]:
    """Real entities from the tables, then generated ones."""
    maker = ValueMaker(random)
    for kind_name, kind in load_kinds().items():
        if kind.table:
            for row in kind.rows():
                values = {name: row[relation.value] for name, relation in kind.relations.items()}
                yield Entity(row["name"], kind_name, values)
        for _ in range(kind.count):
            values = {name: maker.draw(relation.value) for name, relation in kind.relations.items()}
            yield Entity(maker.draw(kind.name), kind_name, values)


def _write_articles(entities: Sequence[Entity], random: np.random.Generator) -> list[_Article]:
    """All articles; passage ids count from 1 in a shuffled order, so that neighbours tell nothing."""
    kinds = load_kinds()
    total = sum(len(kinds[entity.kind].passages) for entity in entities)
    ids = iter((random.permutation(total) + 1).tolist())
    articles = []
    for entity in entities:
        kind = kinds[entity.kind]
        title = entity.name[0].upper() + entity.name[1:]
        passages = [Passage(str(next(ids)), title, _text(entity, kind, group, random)) for group in kind.passages]
        articles.append(_Article(entity, tuple(passages)))
    return articles


def _text(entity: Entity, kind: Kind, group: Sequence[str], random: np.random.Generator) -> str:
    """Sentences for the facts of `group` and some fillers, in random order; the first one names the entity."""
    patterns = [_pick(kind.relations[name].says, random).replace("{value}", entity.values[name]) for name in group]
    num_fillers = min(len(kind.fillers), int(random.integers(FILLERS[0], FILLERS[1] + 1)))
    patterns += [kind.fillers[i] for i in random.permutation(len(kind.fillers))[:num_fillers]]
    sentences = []
    for position, index in enumerate(random.permutation(len(patterns))):
        by_noun = position > 0 and random.random() < NOUN_SHARE
        subject = kind.noun if by_noun else _in_sentence(entity, kind)
        sentence = patterns[index].replace("{name}", subject)
        sentences.append(sentence[0].upper() + sentence[1:])
    return " ".join(sentences)


def _ask(
    article: _Article, articles: Sequence[_Article], random: np.random.Generator, questions_per_fact: int
) -> Iterator[Ask]:
    """Questions about every fact of one article."""
    entity, kind = article.entity, load_kinds()[article.entity.kind]
    peers = [other for other in articles if other.entity.kind == entity.kind and other is not article]
    for place, gold in enumerate(article.passages):
        own = [passage for passage in article.passages if passage is not gold]
        for name in kind.passages[place]:
            asks, answer = kind.relations[name].asks, entity.values[name]
            for pattern in random.permutation(len(asks))[:questions_per_fact]:
                alike = [_pick(peers, random).passages[place]]
                if own:
                    alike.insert(0, _pick(own, random))
                distractors = tuple(other for other in alike if normalized(answer) not in normalized(other.text))
                yield Ask(asks[pattern].replace("{name}", _in_sentence(entity, kind)), answer, gold, distractors)


def _in_sentence(entity: Entity, kind: Kind) -> str:
    return f"{kind.article} {entity.name}".strip()


def _pick(choices: Sequence[Item], random: np.random.Generator) -> Item:
    return choices[int(random.integers(len(choices)))]
