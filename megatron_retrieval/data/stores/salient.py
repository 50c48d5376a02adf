"""The span store: sentences with their salient spans, memory-mapped, and which passages hold each sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_retrieval.data.salient.spans import Span
from megatron_retrieval.data.stores.column_folder import ColumnFolder, column_format, offsets_file, values_file
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import Rows
from megatron_retrieval.errors import MismatchError

TOOL = "megatron-retrieval build spans"
#: a row for each sentence: UTF-8 text; start, end and number of the type of each of its spans
SENTENCES, SPANS = "sentences", "spans"
#: [num_sentences] the passage that the sentence was read from, -1 for none; and the number of its wording
PASSAGES, WORDINGS = "passages.i64", "wordings.i64"
#: a row for each wording: the passages that hold it
HOLDERS = "holders"


class SpanStore(ColumnFolder):
    """Opens what `build_salient_spans` wrote, in constant time and memory; every sentence has a span.

    Attributes:
        types: of spans; a span's type is one of them.
        evidence_fingerprint: of the evidence whose passages are meant.

    Args:
        folder: of the spans.

    Raises:
        DataError: the folder is missing, incomplete or damaged.
    """

    format = column_format(
        "salient spans",
        "num_sentences",
        "num_spans",
        "num_wordings",
        "types",
        "evidence_fingerprint",
        hint=f"Build it anew with {TOOL}.",
    )

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._num_sentences: int = self._manifest["num_sentences"]
        self.types: tuple[str, ...] = tuple(self._manifest["types"])
        self.evidence_fingerprint: str = self._manifest["evidence_fingerprint"]
        self._texts = self._column(SENTENCES, np.uint8, len(self))
        self._spans = self._column(SPANS, "<i4", len(self))
        self._passages: Rows = self._map(PASSAGES, "<i8")
        self._wordings: Rows = self._map(WORDINGS, "<i8")
        self._holders = self._column(HOLDERS, "<i8", self._manifest["num_wordings"])

    def __len__(self) -> int:
        return self._num_sentences

    def sentence(self, row: int) -> tuple[str, list[Span]]:
        """A sentence and its spans, in order and without overlaps."""
        spans = self._spans[row].reshape(-1, 3).tolist()
        return self._texts[row].tobytes().decode(), [Span(start, end, self.types[kind]) for start, end, kind in spans]

    def passage(self, row: int) -> int:
        """The row of the passage that the sentence was read from; -1: it is not from the evidence."""
        return int(self._passages[row])

    def holders(self, row: int) -> Rows:
        """All rows of the evidence whose text holds the sentence, its own passage first."""
        found = self._holders[self._wordings[row]].astype(np.int64)
        own = self._passages[row : row + 1]
        return np.concatenate([own[own >= 0], found[~np.isin(found, own)]])

    def require_evidence(self, evidence: EvidenceStore) -> None:
        """Refuse evidence in which nobody has looked for the sentences.

        Raises:
            MismatchError: it is not the one that the spans were built with.
        """
        if self.evidence_fingerprint != evidence.fingerprint:
            raise MismatchError(
                f"The salient spans in {self.folder} were built with evidence {self.evidence_fingerprint}, but "
                f"{evidence.folder} is evidence {evidence.fingerprint}: which of its passages hold the sentences is "
                f"not known. Build them with {TOOL} --evidence {evidence.folder}."
            )


def column_files(*columns: str) -> list[str]:
    """Names of the files of columns."""
    return [name(column) for column in columns for name in (values_file, offsets_file)]
