"""What the jobs with losses on record learn from: articles of the mini encyclopedia, and questions about them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from megatron_retrieval.checkpoint.kinds.causal_lm import CAUSAL_LM
from megatron_retrieval.data.stores.chunk_builder import ChunkBuilderConfig, build_chunks
from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.data.stores.corpus import CorpusStore
from megatron_retrieval.data.stores.corpus_builder import CorpusBuilderConfig, build_corpus
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.models.causal_lm import CausalConfig, CausalLM
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing import runs
from megatron_retrieval.testing.encyclopedia.build import Ask, Encyclopedia, build_encyclopedia
from megatron_retrieval.testing.encyclopedia.output import vocabulary, write_passages, write_questions
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_byte_bpe import write_byte_bpe
from megatron_retrieval.testing.tiny_retro import write_tiny_neighbors
from megatron_retrieval.testing.tiny_sentencepiece import write_sentencepiece
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.files import file_fingerprint

NUM_PASSAGES, NUM_QUESTIONS, NUM_PIECES = 200, 40, 400
#: of what readers start from; a step at learning rate 0 leaves the weights of the first moment
START = (
    "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --hidden-dropout 0 --attention-dropout 0 --seed 3 "
    "--train-iters 1 --lr 0 --global-batch-size 1 --valid-fraction 0 --no-tensorboard"
).split()
BERT_START = [*START, *"--max-position-embeddings 80 --seq-length 80 --init-method-std 0.12".split()]
T5_START = [*START, *"--ffn-hidden-size 128 --gated-linear-unit --seq-length 80".split()]
CAUSAL_SHAPE = CausalConfig(
    num_layers=2,
    hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=128,
    max_position_embeddings=512,
    vocab_size=NUM_PIECES,
    init_method_std=0.12,
)
STILL = "--train-iters 1 --lr 0 --global-batch-size 1 --seed 3 --no-tensorboard".split()
TEXT_START = [*STILL, *"--query-seq-length 24 --retriever-seq-length 80 --valid-fraction 0".split()]
READER_START = [*STILL, *"--question-seq-length 32 --reader-seq-length 80 --num-passages 2".split()]


@dataclass(frozen=True)
class Source:
    """What one job is given.

    Attributes:
        flags: that name it.
        fingerprint: of its contents.
    """

    flags: list[str]
    fingerprint: str


class Inputs:
    """Everything is written when it is first asked for.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def wordpiece_corpus(self) -> Source:
        """Documents of one to three passages."""
        (self._folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary(self._encyclopedia)))
        return self._corpus("corpus", vocab_file=str(self._folder / "vocab.txt"))

    @cached_property
    def sentencepiece_corpus(self) -> Source:
        """The same documents for a T5."""
        texts = [text for passage in self._passages for text in (passage.title, passage.text)]
        settings = {"model_type": "bpe", "vocab_size": NUM_PIECES, "num_threads": 1}
        model = write_sentencepiece(self._folder / "spiece.model", texts, **settings)
        return self._corpus("corpus-t5", tokenizer_model=str(model))

    @cached_property
    def questions_for_bert(self) -> Source:
        """Questions with three passages each, and a masked language model with random weights to start from."""
        return self._questions(runs.BERT, "bert", BERT_START, self.wordpiece_corpus)

    @cached_property
    def questions_for_t5(self) -> Source:
        """The same with a T5."""
        return self._questions(runs.T5, "t5", T5_START, self.sentencepiece_corpus)

    @cached_property
    def questions_for_causal_lm(self) -> Source:
        """The same with a causal language model."""
        data, start = self._folder / "questions.json", self._folder / "causal"
        self._write_questions(data)
        texts = [text for passage in self._passages for text in (passage.title, passage.text)]
        vocabulary = write_byte_bpe(start / "vocabulary", texts, num_tokens=NUM_PIECES)
        run_on_ranks(_save_causal_lm, 1, str(start), str(vocabulary))
        flags = ["--train-data", str(data), "--pretrained-checkpoint", str(start)]
        return Source(flags, f"{file_fingerprint(data)} {ByteBpeTokenizer(vocabulary).fingerprint}")

    @cached_property
    def chunks_with_neighbors(self) -> Source:
        """Chunks of the same passages, and for each of them two others, drawn at random."""
        source, output = self._folder / "passages.tsv", self._folder / "chunks"
        write_passages(source, self._passages)
        texts = [text for passage in self._passages for text in (passage.title, passage.text)]
        vocabulary = write_byte_bpe(self._folder / "byte-bpe", texts, num_tokens=NUM_PIECES)
        settings = {"vocab_file": str(vocabulary), "retro_chunk_length": 16}
        build_chunks(ChunkBuilderConfig(input=(str(source),), output=str(output), **settings))  # type: ignore[arg-type]
        chunks = ChunkStore(output)
        rows = np.random.default_rng(3).integers(0, len(chunks), (len(chunks), 2))
        neighbors = write_tiny_neighbors(self._folder / "neighbors", chunks, rows)
        flags = ["--retro-chunks", str(output), "--retro-neighbors", str(neighbors.folder)]
        return Source(flags, chunks.fingerprint)

    @cached_property
    def asked_questions(self) -> Source:
        """Questions without passages, the evidence to find some in, and a retriever and a reader to start from."""
        data, evidence, start = (self._folder / name for name in ("asked.qa.csv", "evidence", "end-to-end"))
        reading, encoder = self.questions_for_bert, self._folder / "bert"
        write_questions(data, self._encyclopedia.train[:NUM_QUESTIONS])
        settings = {"input": (str(self._folder / "passages.tsv"),), "vocab_file": str(self._folder / "vocab.txt")}
        build_evidence(EvidenceBuilderConfig(output=str(evidence), **settings))  # type: ignore[arg-type]
        fingerprint = f"{file_fingerprint(data)} {EvidenceStore(evidence).fingerprint}"
        retriever, reader = start / "retriever", start / "reader"
        ict = [*TEXT_START, *self.wordpiece_corpus.flags, "--pretrained-checkpoint", str(encoder)]
        runs.train(runs.ICT, [*ict, "--save", str(retriever), "--output-dir", str(start / "ict")])
        fusion = [*READER_START, *reading.flags, "--save", str(reader), "--output-dir", str(start / "fusion")]
        runs.train(runs.FUSION, fusion)
        flags = ["--train-data", str(data), "--evidence", str(evidence)]
        return Source([*flags, "--retriever", str(retriever), "--reader", str(reader)], fingerprint)

    @cached_property
    def _encyclopedia(self) -> Encyclopedia:
        return build_encyclopedia()

    @property
    def _passages(self) -> tuple[Passage, ...]:
        return self._encyclopedia.passages[:NUM_PASSAGES]

    def _corpus(self, name: str, **tokenizer: str) -> Source:
        source, output = self._folder / "passages.tsv", self._folder / name
        write_passages(source, self._passages)
        build_corpus(CorpusBuilderConfig(input=(str(source),), output=str(output), **tokenizer))  # type: ignore[arg-type]
        return Source(["--data-path", str(output)], CorpusStore(output).fingerprint)

    def _questions(self, recipe: runs.Recipe, name: str, shape: list[str], corpus: Source) -> Source:
        data, start = self._folder / "questions.json", self._folder / name
        self._write_questions(data)
        runs.train(recipe, [*shape, *corpus.flags, "--save", str(start), "--output-dir", str(start / "run")])
        flags = ["--train-data", str(data), "--pretrained-checkpoint", str(start)]
        return Source(flags, f"{file_fingerprint(data)} {corpus.fingerprint}")

    def _write_questions(self, path: Path) -> None:
        asked = enumerate(self._encyclopedia.train[:NUM_QUESTIONS])
        path.write_text(json.dumps([_record(ask, number) for number, ask in asked]))


def _save_causal_lm(topology: ProcessTopology, folder: str, vocabulary: str) -> None:
    """One with random weights, which no job here pretrains."""
    model = CausalLM(CAUSAL_SHAPE, topology, seed=3)
    CAUSAL_LM.save(folder, model, topology, CAUSAL_SHAPE, ByteBpeTokenizer(vocabulary))


def _record(ask: Ask, number: int) -> dict[str, object]:
    """As a retriever's result; the passage with the answer stands first, second or third."""
    passages = list(ask.distractors)
    passages.insert(number % (1 + len(passages)), ask.gold)
    contexts = [{"id": found.id, "title": found.title, "text": found.text, "score": "1"} for found in passages]
    return {"question": ask.text, "answers": [ask.answer], "ctxs": contexts}
