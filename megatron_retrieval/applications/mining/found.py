"""What a retriever found for the questions of training data: results in JSON, or a TREC run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_retrieval.applications.mining.rules import Hit
from megatron_retrieval.data.files.json_records import Record
from megatron_retrieval.data.files.names import CONTEXTS
from megatron_retrieval.data.files.passage_files import passage_of
from megatron_retrieval.data.files.question_files import question_columns
from megatron_retrieval.data.files.records import read_records
from megatron_retrieval.data.files.sniff import FileKind, sniff
from megatron_retrieval.data.files.trec import read_run
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError, MismatchError


class FoundPassages:
    """The passages found for each question of a file, in the order of the questions.

    Runs, and Pyserini's results, leave out questions for which nothing was found; DPR's results have them all.

    Args:
        path: results.json of retriever-evaluate, DPR's or Pyserini's JSON, or a TREC run.
        asked: the file of the questions, for messages.
        evidence: folder of the evidence that holds the passages of a run.
    """

    def __init__(self, path: Path, asked: Path, evidence: Path | None) -> None:
        self._path, self._asked = path, asked
        kind = sniff(path)
        self._by_id, self._has_gaps = kind is FileKind.RUN, kind in (FileKind.RUN, FileKind.JSON_MAP)
        if self._by_id:
            assert evidence is not None
            self._found = _of_run(path, EvidenceStore(evidence))
        else:
            self._found = _of_results(path)
        self._next = next(self._found, None)

    def of(self, identifier: str, question: str) -> Sequence[Hit]:
        """The passages of the next question, best first.

        Raises:
            ConfigError: the file is of other questions.
        """
        if self._next is not None and self._next[0] == (identifier if self._by_id else question):
            hits, self._next = self._next[1], next(self._found, None)
            return hits
        if self._has_gaps:
            return ()
        raise ConfigError(
            f"{self._path} does not hold the questions of {self._asked} in their order; it parts from them at "
            f"{question!r}. Evaluate that file, without stride or limit."
        )

    def require_end(self) -> None:
        """Refuse a file with gaps that holds more questions than were asked for, or in another order.

        Raises:
            ConfigError: naming the first of them.
        """
        if self._has_gaps and self._next is not None:
            raise ConfigError(
                f"{self._path} does not hold the questions of {self._asked} in their order: {self._next[0]!r} stands "
                "elsewhere there, or not at all."
            )


def _of_results(path: Path) -> Iterator[tuple[str, Sequence[Hit]]]:
    for record in read_records(path, question_columns):
        yield record.text("question"), tuple(map(_hit, record.records(*CONTEXTS)))


def _of_run(path: Path, evidence: EvidenceStore) -> Iterator[tuple[str, Sequence[Hit]]]:
    for identifier, found in read_run(path):
        ids, scores = zip(*found, strict=True)
        rows = evidence.rows_of(ids)
        if (rows < 0).any():
            lacking = ids[int((rows < 0).argmax())]
            raise MismatchError(f"The evidence in {evidence.folder} lacks the passage {lacking!r} of {path}.")
        yield identifier, tuple(map(Hit, evidence.passages(rows), scores))


def _hit(context: Record) -> Hit:
    score = context.values.get("score", 0)
    try:
        return Hit(passage_of(context), float(score), bool(context.values.get("has_answer")))
    except (TypeError, ValueError) as error:
        raise context.error(f"{score!r} is no score") from error
