"""Adapts the encoder to the documents, in the ways that are asked for, and keeps what finds more."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from megatron_retrieval.applications.learn.config import LearnConfig
from megatron_retrieval.applications.learn.encoder import imported
from megatron_retrieval.applications.learn.folder import PASSAGES
from megatron_retrieval.applications.learn.indexes import corpus_of, embed, evidence_of
from megatron_retrieval.applications.learn.measure import HeldOut, figures, found_ranks, hold_out_sentences, is_better
from megatron_retrieval.applications.learn.questions import fine_tune, hold_out_questions
from megatron_retrieval.applications.learn.read import Documents
from megatron_retrieval.applications.learn.ways import WAYS, Adaptation, Training
from megatron_retrieval.applications.search import SearchConfig
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.config.parser import to_flat_dict
from megatron_retrieval.evaluation.rank_metrics import Ranks
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.utils.files import file_fingerprint, read_json, write_json
from megatron_retrieval.utils.logging import get_logger

DECISION = "decision.json"
#: fewer held-out questions tell nothing
_LEAST_QUESTIONS = 20
#: folders that only an unfinished adaptation needs
_LARGE = ("checkpoints", "mean", "corpus", "spans", "evidence", "embeddings-*", "*.tsv", "corpus.jsonl")

log = get_logger("learn")


@dataclass(frozen=True)
class Trial:
    """One adaptation of an encoder to documents.

    Attributes:
        version: folder with the evidence and the BM25 index of the documents.
        start: checkpoint that it begins from.
        folder: for what is written.
    """

    config: LearnConfig
    documents: Documents
    version: Path
    start: Path
    folder: Path
    topology: ProcessTopology

    def decide(self) -> dict[str, Any]:
        """Try all ways, each from the best so far; returns what came out, for the record."""
        made_of, number = ("questions", self._users[2]) if self._asked else ("sentences", self._held_out.num_questions)
        found: dict[str, Any] = {"held_out": made_of, "num_held_out": number, "encoder": self.start.name, "tries": []}
        if number < _LEAST_QUESTIONS:
            log.warning("%d held-out %s are too few to judge by: the encoder stays as it is", number, made_of)
            return found
        best, before = self.start, self._ranks(self.start)
        if len(before) < _LEAST_QUESTIONS:
            problem = "of %d held-out %s only %d name an answer, or a passage by its id here: too few to judge by"
            log.warning(f"{problem}; the encoder stays as it is", number, made_of, len(before))
            return found
        found["before"] = figures(before)
        for name, train in self._ways():
            trained = train(best)
            after = self._ranks(trained)
            is_kept, difference = is_better(before, after)
            found["tries"].append({"way": name, "after": figures(after), "difference": difference, "kept": is_kept})
            log.info("%s", _sentence(name, before, after, difference, is_kept, made_of))
            if is_kept:
                best, before = trained, after
        return found | {"encoder": self._kept(best)}

    @property
    def _asked(self) -> Path | None:
        """The user's questions."""
        return self.config.adaptation.questions

    @cached_property
    def _held_out(self) -> HeldOut:
        settings, passages = self.config.adaptation, list(self.documents.passages())
        language = self.config.cutting.language
        return hold_out_sentences(
            passages, self.folder, most=settings.max_held_out, language=language, seed=settings.seed
        )

    @cached_property
    def _users(self) -> tuple[Path, Path, int]:
        """See `hold_out_questions`."""
        assert self._asked is not None
        return hold_out_questions(self._asked, self.version / "evidence", self.version / "bm25", self.folder)

    def _ways(self) -> Iterator[tuple[str, Callable[[Path], Path]]]:
        """Names of what is tried, and what trains a checkpoint so."""
        for number, name in enumerate(self.config.adaptation.adapt, 1):
            yield name, partial(self._adapt, name, f"{number}-{name}")
        if self._asked:
            yield "questions", lambda start: fine_tune(start, self._users[0], self._training("questions"))

    def _adapt(self, way: str, folder: str, start: Path) -> Path:
        config, writer = self.config, self.config.adaptation.question_writer
        reranker = config.adaptation.question_reranker
        passages = self.version / PASSAGES if self._asked else self._held_out.rest
        corpus, language = self.folder / "corpus", config.cutting.language
        vocabulary = DUAL_ENCODER.describe(start).vocabulary()
        adaptation = Adaptation(
            start=start,
            passages=passages,
            searched=self._search(start),
            training=self._training(folder),
            writer=imported(writer, config.learned / "writers", self.topology) if writer else None,
            reranker=imported(reranker, config.learned / "rerankers", self.topology) if reranker else None,
            make_corpus=lambda: corpus_of(passages, corpus, vocabulary, language, config.workers),
        )
        return WAYS[way].train(adaptation)

    def _training(self, folder: str) -> Training:
        settings = self.config.adaptation
        return Training(
            folder=self.folder / folder,
            steps=settings.adapt_steps,
            batch_size=settings.adapt_batch_size,
            lr=settings.adapt_lr,
            seed=settings.seed,
            topology=self.topology,
        )

    def _search(self, encoder: Path) -> SearchConfig:
        """The passages that held-out questions are to find, by an encoder."""
        config, evidence = self.config, self.version / "evidence"
        if not self._asked:
            evidence = evidence_of(self._held_out.passages, self.folder / "evidence", self.start, config.workers)
        embeddings, _ = embed(evidence, encoder, config.learned, config.encode, self.topology)
        return SearchConfig(evidence=evidence, embeddings=embeddings, retriever=encoder)

    def _ranks(self, encoder: Path) -> Ranks:
        """What the encoder finds for the held-out questions."""
        questions = self._users[1] if self._asked else self._held_out.questions
        return found_ranks(self._search(encoder), questions, self.config.encode, self.topology)

    def _kept(self, best: Path) -> str:
        """Put the best encoder among the others; returns its name there."""
        if best == self.start:
            return best.name
        found = DUAL_ENCODER.describe(best)
        output = self.start.with_name(f"{self.start.name}-adapted-{found.fingerprint[:8]}")
        if not output.exists():
            model = found.load(self.topology)
            DUAL_ENCODER.save(output, model, self.topology, found.shape, found.vocabulary(), found.layout)
        return output.name


def adapted_encoder(
    config: LearnConfig, documents: Documents, version: Path, start: Path, topology: ProcessTopology
) -> tuple[Path, dict[str, Any]]:
    """The checkpoint to embed with, and how it was chosen. Once decided, it stays: documents that change do not ask for
    another adaptation, but other settings do.
    """
    settings = config.adaptation
    if not settings.adapt and settings.questions is None:
        return start, {}
    asked = file_fingerprint(settings.questions) if settings.questions else ""
    key = json.dumps([start.name, {**to_flat_dict(settings), "questions": asked}], sort_keys=True, default=str)
    folder = config.learned / "runs" / hashlib.sha256(key.encode()).hexdigest()[:12]
    if (folder / DECISION).exists():
        decision = read_json(folder / DECISION)
        log.info("the encoder was adapted before; remove %s to adapt it anew", folder)
    else:
        decision = Trial(config, documents, version, start, folder / version.name, topology).decide()
        write_json(folder / DECISION, decision)
    return start.with_name(decision["encoder"]), decision


def remove_large_files(learned: Path) -> None:
    """Remove what adaptations that are decided do not need any more; curves and figures stay."""
    for decision in learned.glob(f"runs/*/{DECISION}"):
        for name in _LARGE:
            for path in sorted(decision.parent.rglob(name)):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def _sentence(name: str, before: Ranks, after: Ranks, difference: dict[str, float], is_kept: bool, made_of: str) -> str:
    """What came out, for the person who watches."""
    was, now = (100 * figures(ranks)["recall@1"] for ranks in (before, after))
    change = f"mean reciprocal rank {100 * difference['mrr']:+.1f} [{100 * difference['low']:+.1f}, "
    change += f"{100 * difference['high']:+.1f}] points"
    verdict = "kept" if is_kept else "not kept: no better than chance explains"
    return f"{name}: {was:.1f} % -> {now:.1f} % of {len(before)} held-out {made_of} find their passage first; " + (
        f"{change}; {verdict}"
    )
