"""`Retriever`: embeds, searches, learns from pairs and exports, in Python.

Each method does what a command of `megatron-retrieval` does, on the same artefacts; ranks of torchrun share the work.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from megatron_retrieval.applications.interface.indexing import build_index_folder, embed_folder
from megatron_retrieval.applications.interface.opening import (
    BM25,
    EMBEDDINGS,
    EVIDENCE,
    RETRIEVER,
    Scratch,
    find_checkpoint,
)
from megatron_retrieval.applications.interface.texts import (
    FoundPassage,
    PassageLike,
    as_passages,
    write_pairs,
    write_passages,
)
from megatron_retrieval.applications.search import SearchConfig, SearchOptionsConfig, SearchSession, open_search
from megatron_retrieval.checkpoint.huggingface.formats import export_model
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER, LoadedDualEncoder
from megatron_retrieval.checkpoint.kinds.kind import Loaded
from megatron_retrieval.config.parser import config_of
from megatron_retrieval.data.examples.passage_pool import PassagePool
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.parallel.collectives import on_first_rank
from megatron_retrieval.parallel.topology import ProcessTopology, standing_topology
from megatron_retrieval.recipes.retriever_finetune import RetrieverFinetuneConfig, build
from megatron_retrieval.retrieval.encode_batches import EncodePassagesConfig, encode_sequences
from megatron_retrieval.retrieval.retriever import encode_questions
from megatron_retrieval.training.training_run import run_training
from megatron_retrieval.utils.files import atomic_directory

By = Literal["dense", "bm25", "hybrid"]


@dataclass(kw_only=True, frozen=True)
class RetrieverConfig:
    """How a retriever encodes and searches."""

    encode: EncodePassagesConfig = field(default_factory=EncodePassagesConfig)
    options: SearchOptionsConfig = field(default_factory=SearchOptionsConfig)


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
    >>> [best.id for best, in retriever.search([question for question, _ in pairs], k=1)]
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
        self._folder: Path | None = None
        self._take(checkpoint)

    @classmethod
    def load(
        cls, path: str | Path, *, device: str | None = None, topology: ProcessTopology | None = None, **settings: Any
    ) -> Self:
        """Open an encoder, or a folder that `save` wrote, with its passages.

        Args:
            path: a checkpoint; a folder of sentence-transformers or Hugging Face (of DPR with both encoders); or a
                folder with `retriever`, `evidence`, and `embeddings`, `bm25` or both.
            device: cpu or cuda; default: cuda where it is available.
            topology: of the ranks that share the work; default: this process, or those of its torchrun.
            settings: flags of `megatron-retrieval search`, such as `dtype="bf16"` or `fusion="rrf"`.

        Raises:
            CheckpointError: no dual encoder there.
            ConfigError: a setting is unknown or out of range.
        """
        topology = topology or standing_topology(device)
        config, scratch = config_of(RetrieverConfig, **settings), Scratch(topology)
        checkpoint = find_checkpoint(path, RETRIEVER, scratch, topology)
        retriever = cls(checkpoint, config, topology, scratch)
        if any((Path(path) / part).is_dir() for part in (EMBEDDINGS, BM25)):
            retriever._open(Path(path))
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
            questions = [_question(text) for text in texts]
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
        build_index_folder(source, place, self._encoder, self._config.encode, self._topology, bm25=bm25)
        self._open(place)
        return self

    def search(self, questions: Sequence[str], k: int = 5, *, by: By | None = None) -> list[list[FoundPassage]]:
        """For each question the k best passages, best first.

        Args:
            by: vectors (dense), words (bm25) or both (hybrid); default: vectors where there are any.

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
        folder, data = Path(output or self._scratch.new("training")), self._scratch.new("pairs.json")
        on_first_rank(lambda: write_pairs(data, pairs), self._topology.world_group)
        has_negatives = any(len(pair) > 2 for pair in pairs)
        defaults = {"num_hard_negatives": int(has_negatives), "tensorboard": False, "gradient_caching": False}
        config = config_of(
            RetrieverFinetuneConfig,
            pretrained_checkpoint=self.checkpoint,
            train_data=[data],
            output_dir=folder,
            save=folder / "checkpoints",
            epochs=epochs,
            global_batch_size=batch_size,
            lr=lr,
            **{**defaults, **settings},
        )
        run_training(build, config, self._topology)
        self._take(folder / "checkpoints")
        if self._folder is not None and self.session is not None and self.session.dense is not None:
            place = self._scratch.new("index")
            embed_folder(self._folder, place, self._encoder, self._config.encode, self._topology)
            self._open(place)
        return self

    def save(self, folder: str | Path) -> None:
        """Write the encoder, and what is indexed, to a new folder that `load` opens.

        Its parts are artefacts as every command reads them: `--retriever FOLDER/retriever --evidence FOLDER/evidence`.
        """

        def write() -> None:
            with atomic_directory(folder) as new:
                shutil.copytree(self._encoder.description.folder, new / RETRIEVER)
                for part in (EVIDENCE, EMBEDDINGS, BM25):
                    if self._folder is not None and (self._folder / part).is_dir():
                        shutil.copytree(self._folder / part, new / part)

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

    def _open(self, folder: Path) -> None:
        """Search what a folder holds from now on."""
        has_vectors, has_words = ((folder / part).is_dir() for part in (EMBEDDINGS, BM25))
        config = SearchConfig(
            evidence=folder / EVIDENCE,
            embeddings=folder / EMBEDDINGS if has_vectors else None,
            retriever=self.checkpoint if has_vectors else None,
            bm25_index=folder / BM25 if has_words else None,
            options=self._config.options,
        )
        self.session = open_search(config, self._config.encode, self._topology, encoder=self._encoder)
        self._folder = folder

    def _searching(self, by: By | None) -> SearchSession:
        session = self.session
        if session is None:
            raise ConfigError("nothing to search yet: call index(passages), or load a folder with evidence.")
        kind = by or ("dense" if session.dense else "bm25")
        if kind not in ("dense", "bm25", "hybrid"):
            raise ConfigError(f"by={kind!r}: expected dense, bm25 or hybrid.")
        if (kind != "bm25" and session.dense is None) or (kind != "dense" and session.lexical is None):
            raise ConfigError(f"by={kind!r}: the passages were indexed without it; index(passages, bm25=True) has all.")
        if kind == "bm25":
            return dataclasses.replace(session, dense=None)
        return session if kind == "hybrid" else dataclasses.replace(session, lexical=None)


def _question(given: PassageLike) -> str:
    if not isinstance(given, str):
        raise ConfigError(f"a question is a string; got {given!r:.80}.")
    return given
