"""`Retriever`: embeds, searches, learns from pairs and exports, in Python.

Each method does what a command of `megatron-retrieval` does, on the same artefacts; ranks of torchrun share the work.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.applications.interface.fitting import fit_pairs
from megatron_retrieval.applications.interface.indexing import build_index_folder, embed
from megatron_retrieval.applications.interface.opening import (
    BM25,
    EMBEDDINGS,
    EVIDENCE,
    RETRIEVER,
    RetrieverConfig,
    Scratch,
    find_checkpoint,
    find_index,
)
from megatron_retrieval.applications.interface.texts import (
    FoundPassage,
    PassageLike,
    as_passages,
    as_question,
    write_passages,
)
from megatron_retrieval.applications.search import (
    SearchConfig,
    SearchMethod,
    SearchSession,
    open_search,
)
from megatron_retrieval.checkpoint.huggingface.formats import export_model
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER, LoadedDualEncoder
from megatron_retrieval.checkpoint.kinds.kind import Loaded
from megatron_retrieval.config.parser import config_of
from megatron_retrieval.data.examples.passage_pool import PassagePool
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel.collectives import on_first_rank
from megatron_retrieval.parallel.topology import ProcessTopology, standing_topology
from megatron_retrieval.retrieval.encode_batches import encode_sequences
from megatron_retrieval.retrieval.retriever import encode_questions
from megatron_retrieval.utils.files import atomic_directory


class Retriever:
    """An encoder of questions and passages, and the passages that it searches, once there are any.

    >>> from megatron_retrieval import Retriever
    >>> retriever = Retriever.load("encoder")
    >>> retriever.embed(["where is key1", "where is key2"], is_query=True).shape
    (2, 32)
    >>> passages = [("title", f"the box of key{n} stands in the room") for n in range(8)]
    >>> found = retriever.index(passages, bm25=True).search(["where is key1"], k=1, by="bm25")
    >>> found[0][0].id, found[0][0].title, found[0][0].text
    ('2', 'title', 'the box of key1 stands in the room')
    >>> pairs = [(f"where is key{n}", passage) for n, passage in enumerate(passages)]
    >>> _ = retriever.fit(pairs, epochs=30, batch_size=8, lr=3e-3)
    >>> [best.id for best, in retriever.search([question for question, _ in pairs], k=1, by="dense")]
    ['1', '2', '3', '4', '5', '6', '7', '8']
    >>> retriever.save("mine")
    >>> Retriever.load("mine").search(["where is key4"], k=2)[0][0].text
    'the box of key4 stands in the room'
    >>> retriever.export("for-others", format="sentence-transformers")
    """

    def __init__(self, checkpoint: Path, config: RetrieverConfig, topology: ProcessTopology, scratch: Scratch) -> None:
        self._config, self._topology, self._scratch = config, topology, scratch
        #: what is searched, None before `index`; other programs may use it directly
        self.session: SearchSession | None = None
        self._searched: SearchConfig | None = None
        self._take(checkpoint)

    @classmethod
    def load(
        cls, path: str | Path, *, device: str | None = None, topology: ProcessTopology | None = None, **settings: Any
    ) -> Self:
        """Open an encoder, or one with its passages.

        Args:
            path: a checkpoint; a folder of sentence-transformers or Hugging Face (of DPR with both encoders); what
                `save` or `megatron-retrieval learn` wrote.
            device: cpu or cuda; default: cuda where it is available.
            topology: of the ranks that share the work; default: this process, or those of its torchrun.
            settings: flags of `megatron-retrieval search`, such as `dtype="bf16"` or `fusion="rrf"`.

        Raises:
            CheckpointError: no dual encoder there.
            ConfigError: a setting is unknown or out of range.
        """
        topology = topology or standing_topology(device)
        config, scratch = config_of(RetrieverConfig, **settings), Scratch(topology)
        index = find_index(Path(path), config.options)
        if index is None:
            return cls(find_checkpoint(path, RETRIEVER, scratch, topology), config, topology, scratch)
        retriever = cls(index.retriever or Path(path) / RETRIEVER, config, topology, scratch)
        retriever._open(index)
        return retriever

    @property
    def dimension(self) -> int:
        """D, of the vectors."""
        return self._encoder.description.shape.dimension

    def embed(self, texts: Sequence[PassageLike], *, is_query: bool = False) -> NDArray[np.float32]:
        """Vectors [n, D] of questions or of passages, in their order.

        Args:
            texts: strings where they are questions.
        """
        device, description = self._topology.device, self._encoder.description
        vocabulary, size = description.vocabulary(), self._config.encode.micro_batch_size
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        if is_query:
            questions = [as_question(text) for text in texts]
            encode, layout = self._encoder.model.encode_queries, description.layout
            vectors = encode_questions(questions, vocabulary, layout, encode, device=device, micro_batch_size=size)
        else:
            titles, bodies = zip(*((passage.title, passage.text) for passage in as_passages(texts)), strict=True)
            tokens = PassagePool(titles, bodies, vocabulary, description.layout).tokens(np.arange(len(titles)))
            vectors = encode_sequences(tokens, self._encoder.model.encode_passages, size, device)
        return vectors.numpy()

    def index(
        self, passages: Iterable[PassageLike] | str | Path, *, folder: str | Path | None = None, bm25: bool = False
    ) -> Self:
        """Embed passages, and search them from now on; those of before are left.

        Args:
            passages: texts, (title, text), mappings with id, title and text, or the path of a file of passages.
            folder: a new folder to keep them in; default: a temporary one, until `save`.
            bm25: index their words as well, for `by="bm25"` and `by="hybrid"`.

        Raises:
            DataError: there are none, or two with one id.
        """
        place = self._scratch.new("index") if folder is None else Path(folder)
        source = Path(passages) if isinstance(passages, str | Path) else self._scratch.new("passages.jsonl")
        if not isinstance(passages, str | Path):
            on_first_rank(lambda: write_passages(source, passages), self._topology.world_group)
        index = build_index_folder(source, place, self._encoder, self._config.encode, self._topology, bm25=bm25)
        self._open(dataclasses.replace(index, options=self._config.options))
        return self

    def search(
        self, questions: Sequence[str], k: int = 5, *, by: SearchMethod | None = None
    ) -> list[list[FoundPassage]]:
        """For each question the k best passages, best first.

        Args:
            by: vectors (dense), words (bm25) or both (hybrid); default: all that was indexed.

        Raises:
            ConfigError: nothing was indexed, or not for this kind of search.
        """
        if isinstance(questions, str):
            raise ConfigError("search takes a list of questions; put the one into brackets.")
        found = self._searching(by).search(questions, k)
        return [[FoundPassage(p.id, p.title, p.text, score) for p, score in passages] for passages in found]

    def fit(
        self,
        pairs: Sequence[Sequence[PassageLike]],
        *,
        epochs: int = 1,
        batch_size: int = 32,
        lr: float = 2e-5,
        output: str | Path | None = None,
        **settings: Any,
    ) -> Self:
        """Learn from questions with passages that answer them; what is indexed is embedded again afterwards.

        The other passages of a batch are negatives, so that a batch should be as large as possible.

        Args:
            pairs: (question, passage), or (question, passage, hard negatives ...).
            output: folder for curves and checkpoints; default: a temporary one.
            settings: further flags of `megatron-retrieval train retriever`, such as `weight_decay=0.01`.

        Raises:
            ConfigError: a pair is none, or a setting is unknown or out of range.
        """
        folder = Path(output or self._scratch.new("training"))
        given = {"epochs": epochs, "global_batch_size": batch_size, "lr": lr, **settings}
        self._take(fit_pairs(pairs, self.checkpoint, folder, self._scratch, self._topology, **given))
        if (index := self._searched) is not None and index.embeddings is not None:
            vectors = self._scratch.new(EMBEDDINGS)
            embed(index.evidence, vectors, self._encoder, self._config.encode, self._topology)
            self._open(dataclasses.replace(index, embeddings=vectors, retriever=self.checkpoint))
        return self

    def save(self, folder: str | Path) -> None:
        """Write the encoder, and what is indexed, to a new folder that `load` opens.

        Its parts are artefacts as every command reads them: `--retriever FOLDER/retriever --evidence FOLDER/evidence`.
        """

        parts: dict[str, Path | None] = {RETRIEVER: self._encoder.description.folder}
        if (index := self._searched) is not None:
            parts |= {EVIDENCE: index.evidence, EMBEDDINGS: index.embeddings, BM25: index.bm25_index}

        def write() -> None:
            with atomic_directory(folder) as new:
                for name, part in parts.items():
                    if part is not None:
                        shutil.copytree(part, new / name)

        on_first_rank(write, self._topology.world_group)

    def export(self, folder: str | Path, *, format: str = "sentence-transformers") -> None:
        """Write the encoder for other projects.

        Args:
            format: one that `megatron-retrieval export checkpoint --help` lists.

        Raises:
            CheckpointError: the format cannot hold this encoder.
        """
        on_first_rank(lambda: export_model(format, self.checkpoint, Path(folder)), self._topology.world_group)

    def _take(self, checkpoint: Path) -> None:
        """Encode with these weights from now on."""
        description = DUAL_ENCODER.describe(checkpoint)
        model = description.load(self._topology, self._config.encode.on(self._topology.device))
        #: as every command takes it
        self.checkpoint = checkpoint
        self._encoder: LoadedDualEncoder = Loaded(model, description)

    def _open(self, index: SearchConfig) -> None:
        """Search this from now on."""
        self.session = open_search(index, self._config.encode, self._topology, encoder=self._encoder)
        self._searched = index

    def _searching(self, by: SearchMethod | None) -> SearchSession:
        if self.session is None:
            raise ConfigError("nothing to search yet: call index(passages), or load a folder with evidence.")
        if by is None:
            return self.session
        if by not in self.session.methods:
            raise ConfigError(
                f"by={by!r}: the passages were indexed for {', '.join(self.session.methods)} only; "
                "index(passages, bm25=True) has all."
            )
        return self.session.by(by)
