"""Lexical search (BM25): a passage is scored by the words that it shares with the question.

The score is Lucene's, sum over the question's words of idf(w) tf / (tf + k1 (1 - b + b length / mean length)) with
idf(w) = ln(1 + (N - n_w + 1/2) / (n_w + 1/2)) (Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009).
Every word's score in every passage is computed when the index is built.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_retrieval.config.checks import Checked, Fraction, NonNegativeFloat
from megatron_retrieval.errors import DataError, MismatchError
from megatron_retrieval.index.exact.pair_scores import empty_result
from megatron_retrieval.tokenizers.words import WordAnalyzer, WordConfig
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.types.search import SearchResult
from megatron_retrieval.utils.files import atomic_directory
from megatron_retrieval.utils.manifest import ManifestFormat
from megatron_retrieval.utils.progress import progress_bar

FORMAT = ManifestFormat(
    what="a BM25 index",
    version=1,
    hint="Build it anew with megatron-retrieval build bm25.",
    keys=frozenset({"evidence_fingerprint", "num_passages", "settings", "file_bytes"}),
)


@dataclass(kw_only=True, frozen=True)
class LexicalConfig(Checked):
    """BM25 scoring."""

    bm25_k1: NonNegativeFloat = 0.9
    """Term-frequency saturation k1; 0: repeated words count once."""
    bm25_b: Fraction = 0.4
    """Length normalisation b, from 0 (none) to 1 (full)."""
    index_titles: bool = True
    """Index the words of the title as well as those of the text."""
    words: WordConfig = field(default_factory=WordConfig)
    """Which words are indexed."""


class LexicalIndex:
    """Opens what `build_lexical_index` wrote; the scores are memory-mapped, the vocabulary is read.

    Args:
        folder: the folder of the index.

    Raises:
        DataError: the folder is missing, unfinished or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._manifest = FORMAT.read(self.folder)
        FORMAT.require_sizes(self.folder, self._manifest["file_bytes"])
        settings = dict(self._manifest["settings"])
        #: how the passages were scored
        self.config = LexicalConfig(words=WordConfig(**settings.pop("words")), **settings)
        self._analyzer = WordAnalyzer(self.config.words)
        import bm25s  # with scipy half a second, for every job that could search by words

        self._scores = bm25s.BM25.load(self.folder, mmap=True, backend="numpy")
        # plain views of the maps: slicing them is several times faster
        for name in ("data", "indices", "indptr"):
            self._scores.scores[name] = np.asarray(self._scores.scores[name])

    @property
    def num_rows(self) -> int:
        """Passages of the evidence."""
        return int(self._manifest["num_passages"])

    def require(self, evidence_fingerprint: str) -> None:
        """Refuse an index of another evidence.

        Raises:
            MismatchError: naming the two that do not belong together.
        """
        own = self._manifest["evidence_fingerprint"]
        if own != evidence_fingerprint:
            raise MismatchError(
                f"The BM25 index in {self.folder} is of evidence {own}, but the evidence given is "
                f"{evidence_fingerprint}; index it with megatron-retrieval build bm25, or give the one that was."
            )

    def search(self, questions: Sequence[str], k: int) -> SearchResult:
        """The k best passages for each of B questions: scores descend, equal scores are ordered by row.

        A passage without a word of the question is not found.

        Returns:
            scores [B, k] and rows [B, k] on the CPU; row -1 and score -inf where fewer are found.
        """
        result = empty_result(len(questions), k, torch.device("cpu"))
        for number, question in enumerate(questions):
            known = self._scores.get_tokens_ids(self._analyzer.stems(question))
            scores = self._scores.get_scores_from_ids(known)
            rows = _best_rows(scores, k)
            result.scores[number, : len(rows)] = torch.from_numpy(scores[rows])
            result.rows[number, : len(rows)] = torch.from_numpy(rows)
        return result


def build_lexical_index(
    passages: Iterable[Passage], num_passages: int, config: LexicalConfig, evidence_fingerprint: str, output: Path
) -> None:
    """Index the passages into the folder `output`, which appears when it is complete.

    Memory: about 41 bytes for each different word of a passage while they are sorted, and the vocabulary; passages of
    100 words have about 41 such words, so that Wikipedia's 21 million need 36 GB. On disk it is 8 bytes each.

    Args:
        passages: in the order of their rows.
        num_passages: their number.
        evidence_fingerprint: of the evidence that they are.

    Raises:
        DataError: `output` exists, or no passage has a word.
    """
    with atomic_directory(output) as folder:
        corpus = _count_words(passages, num_passages, config)
        if not corpus.vocab:
            raise DataError(output, "no passage has a word to index", hint="Are --stemmer and --stop-words right?")
        import bm25s

        scores = bm25s.BM25(k1=config.bm25_k1, b=config.bm25_b, method="lucene", backend="numpy")
        scores.index(corpus, create_empty_token=False, show_progress=False)
        scores.save(folder, show_progress=False)
        manifest = {
            "evidence_fingerprint": evidence_fingerprint,
            "num_passages": num_passages,
            "settings": asdict(config),
        }
        FORMAT.seal(folder, manifest)


class _Words(Sequence[list[int]]):
    """Passages as lists of word ids; only one at a time is a list, since the library iterates several times."""

    def __init__(self, values: array[int], offsets: array[int]) -> None:
        self._values, self._offsets = values, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: Any) -> Any:
        return self._values[self._offsets[row] : self._offsets[row + 1]].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        with progress_bar("Weighing words", "passages", len(self)) as bar:
            for row in range(len(self)):
                yield self[row]
                bar.update()


@dataclass(frozen=True)
class _Corpus:
    """Word ids of the passages and the vocabulary, under the attribute names that the library reads."""

    ids: _Words
    vocab: dict[str, int]


def _count_words(passages: Iterable[Passage], num_passages: int, config: LexicalConfig) -> _Corpus:
    """Number the words in the order in which they first occur."""
    analyzer, vocabulary = WordAnalyzer(config.words), {}  # type: WordAnalyzer, dict[str, int]
    values, offsets = array("i"), array("q", [0])
    with progress_bar("Reading passages", "passages", num_passages) as bar:
        for passage in passages:
            text = f"{passage.title}\n{passage.text}" if config.index_titles else passage.text
            values.extend([vocabulary.setdefault(stem, len(vocabulary)) for stem in analyzer.stems(text)])
            offsets.append(len(values))
            bar.update()
    return _Corpus(_Words(values, offsets), vocabulary)


def _best_rows(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """[N] scores -> the at most k rows of the greatest that are not 0, best first, equal scores by row."""
    rows = np.flatnonzero(scores)
    if len(rows) > k:
        found = scores[rows]
        rows = rows[found >= np.partition(found, len(found) - k)[len(found) - k]]
    return rows[np.argsort(-scores[rows], kind="stable")[:k]]
