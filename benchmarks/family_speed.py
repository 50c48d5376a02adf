"""Passages that an encoder of each family embeds a second, or pairs that a cross-encoder over it scores, against
sentence-transformers with the same random weights and texts.

Both sides get texts, tokenize them, and compute in float32; a vocabulary is trained on the texts. Before anything is
timed, both must give the same vectors or scores; then they take turns, and a round's ratio is that of neighbours.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rivals.memory import peak_mib
from rivals.rounds import in_turns, medians, ratio_cells
from sentence_transformers import CrossEncoder, SentenceTransformer
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn

from megatron_retrieval.checkpoint.huggingface.format import ForeignModel
from megatron_retrieval.checkpoint.huggingface.formats import FORMATS
from megatron_retrieval.checkpoint.kinds.cross_encoder import CROSS_ENCODER
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.encoder_families import ENCODER_FAMILIES
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.data.layouts.pair import PairFormatConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig, lay_out_passages
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.ragged import tokenize
from megatron_retrieval.errors import MismatchError
from megatron_retrieval.models.cross_encoder import CrossEncoderConfig
from megatron_retrieval.models.dual_encoder import DualEncoderConfig
from megatron_retrieval.models.encoder import EncoderShape
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.reports.tables import text_table
from megatron_retrieval.retrieval.encode_batches import encode_sequences
from megatron_retrieval.retrieval.passage_scorers import CrossEncoderScorer
from megatron_retrieval.testing.tiny_byte_bpe import write_modernbert_bpe, write_roberta_bpe, write_unigram
from megatron_retrieval.tokenizers.vocabularies import open_encoder_vocabulary
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.tokenizers.wordpiece import BERT_FRAME, MPNET_FRAME
from megatron_retrieval.types.questions import Passage

Family = Literal["bert", "mpnet", "distilbert", "roberta", "xlm-roberta", "modernbert"]
FAMILIES: tuple[Family, ...] = ("bert", "mpnet", "distilbert", "roberta", "xlm-roberta", "modernbert")
#: greatest difference of a number from the other side's, over the greatest number
TOLERANCE = 1e-3
_CPU = torch.device("cpu")
#: what a side computes, from texts
Run = Callable[[], Tensor]
#: (name of a format, kind, shape, layout) to a random model, and the folder where it lies in that format
Write = Callable[[str, Any, Any, Any], tuple[Any, Path]]


@dataclass(kw_only=True, frozen=True)
class FamilySpeedConfig(Checked):
    """Compare the speed of every family with sentence-transformers, round by round."""

    evidence: Path
    """Folder of evidence, whose passages are the texts; in whatever vocabulary."""
    families: tuple[Family, ...] = FAMILIES
    """Families of encoders."""
    rerank: bool = False
    """Score pairs by a cross-encoder over the encoder, in the place of embedding."""
    memory: bool = False
    """Measure the peak of each side as well, in a process of its own."""
    num_layers: PositiveInt = 6
    """Layers of the encoders."""
    hidden_size: PositiveInt = 384
    """Their width; feed-forward layers are as wide, relatively, as those of the family's base size."""
    num_attention_heads: PositiveInt = 12
    """Their heads."""
    vocab_size: PositiveInt = 8192
    """Entries of the vocabularies, at most."""
    vocabulary_passages: PositiveInt = 2000
    """Passages that a vocabulary is trained on, at most. One of few passages cuts texts into pieces so short that all
    reach the longest length, and nothing is told of padding."""
    max_seq_length: PositiveInt = 256
    """Longest sequence in tokens."""
    num_passages: PositiveInt = 50
    """Passages of a round, spread over the evidence."""
    depth: PositiveInt = 50
    """Passages that are scored for one question."""
    micro_batch_size: PositiveInt = 128
    """Sequences in one of the project's forward passes; sentence-transformers has its own 32."""
    num_rounds: PositiveInt = 4
    """Rounds that are timed."""
    num_threads: PositiveInt = 1
    """Threads of each."""
    clock: Literal["wall", "cpu"] = "wall"
    """Seconds on the wall, or those that the process spends, which other jobs change less."""


def main(config: FamilySpeedConfig) -> None:
    torch.set_num_threads(config.num_threads)
    rows = [_compared(config, family) for family in config.families]
    header = ["family", "ours, texts/s", "theirs, texts/s", "ratio", "rounds", "peak, ours / theirs, MiB"]
    sys.stdout.write(text_table(header, rows) + "\n")


def _compared(config: FamilySpeedConfig, family: Family) -> list[str]:
    with tempfile.TemporaryDirectory() as folder, process_topology(ParallelConfig(device="cpu")) as topology:
        sides = _sides(config, family, Path(folder), topology)
        _require_equal(family, *(side() for side in sides))  # warms up
        seconds = in_turns(sides, config.num_rounds, config.clock)
    peaks = [_peak(config, family, side) for side in (0, 1)] if config.memory else []
    return [
        family,
        *(f"{config.num_passages / median:.0f}" for median in medians(seconds)),
        *ratio_cells(seconds),
        " / ".join(f"{peak:.0f}" for peak in peaks),
    ]


def _require_equal(family: Family, ours: Tensor, theirs: Tensor) -> None:
    """Raises MismatchError: the two do not compute the same."""
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    if not difference < TOLERANCE:
        raise MismatchError(f"{family}: numbers differ by {difference:.2g}; their speeds cannot be compared.")


def _peak(config: FamilySpeedConfig, family: Family, side: int) -> float:
    """MiB that a side takes above the loaded models, in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peak: float = pool.apply(_measured_peak, (config, family, side))
    return peak


def _measured_peak(config: FamilySpeedConfig, family: Family, side: int) -> float:
    torch.set_num_threads(config.num_threads)
    with tempfile.TemporaryDirectory() as folder, process_topology(ParallelConfig(device="cpu")) as topology:
        return peak_mib(_sides(config, family, Path(folder), topology)[side])


def _sides(config: FamilySpeedConfig, family: Family, folder: Path, topology: ProcessTopology) -> tuple[Run, Run]:
    """What each side computes; the model is written into the folder, which the other side reads."""
    evidence = EvidenceStore(config.evidence)
    passages = _spread(evidence, config.num_passages)
    texts = [_text(passage) for passage in _spread(evidence, config.vocabulary_passages)]
    vocabulary = open_encoder_vocabulary(_write_vocabulary(config, family, folder / "vocabulary", texts))
    shape = _shape(config, family, vocabulary.vocab_size)
    write = partial(_write, vocabulary=vocabulary, folder=folder, topology=topology)
    return (_reranking if config.rerank else _embedding)(config, shape, vocabulary, passages, write)


def _spread(evidence: EvidenceStore, most: int) -> list[Passage]:
    """So many passages from all over the evidence, or all."""
    count = min(most, len(evidence))
    return evidence.passages(np.linspace(0, len(evidence) - 1, count).astype(np.int64))


def _embedding(
    config: FamilySpeedConfig, encoder: EncoderShape, vocabulary: Vocabulary, passages: list[Passage], write: Write
) -> tuple[Run, Run]:
    shape = DualEncoderConfig(encoder=encoder, pooling="mean", biencoder_shared_query_context_model=True)
    layout = TextFormatConfig(passage_format="title-text", retriever_seq_length=config.max_seq_length)
    model, folder = write("sentence-transformers", DUAL_ENCODER, shape, layout)
    other = SentenceTransformer(str(folder), device="cpu")

    def ours() -> Tensor:
        titles = tokenize(vocabulary, [passage.title for passage in passages])
        tokens = lay_out_passages(titles, tokenize(vocabulary, [p.text for p in passages]), vocabulary, layout)
        return encode_sequences(tokens, model.encode_passages, config.micro_batch_size, _CPU)

    return ours, partial(other.encode, [_text(passage) for passage in passages], convert_to_tensor=True)


def _reranking(
    config: FamilySpeedConfig, encoder: EncoderShape, vocabulary: Vocabulary, passages: list[Passage], write: Write
) -> tuple[Run, Run]:
    """A question is the beginning of a passage; both sides score one question after another, as a search asks them."""
    shape, layout = CrossEncoderConfig(encoder=encoder), PairFormatConfig(pair_seq_length=config.max_seq_length)
    model, folder = write("hf-cross-encoder", CROSS_ENCODER, shape, layout)
    scorer = CrossEncoderScorer(model, layout, vocabulary, _CPU, config.micro_batch_size)
    other = CrossEncoder(str(folder), device="cpu", max_length=config.max_seq_length)
    asked = [
        (" ".join(passages[first].text.split()[:10]), passages[first : first + config.depth])
        for first in range(0, len(passages), config.depth)
    ]

    def theirs() -> Tensor:
        pairs = ([(question, _text(passage)) for passage in found] for question, found in asked)
        return torch.cat([other.predict(own, convert_to_tensor=True) for own in pairs])

    return lambda: torch.cat([scorer(question, found) for question, found in asked]), theirs


def _text(passage: Passage) -> str:
    return f"{passage.title} {passage.text}".strip()


def _write(
    name: str, kind: Any, shape: Any, layout: Any, *, vocabulary: Vocabulary, folder: Path, topology: ProcessTopology
) -> tuple[Any, Path]:
    """A random model, and the folder into which it is written in a foreign format."""
    model: nn.Module = kind.build(shape, vocabulary.special, topology, seed=1)
    size = vocabulary.vocab_size
    weights = {name: p.data[:size] if "word_emb" in name else p.data for name, p in model.named_parameters()}
    FORMATS[name].write(ForeignModel(kind, shape, weights, vocabulary, layout), folder)
    return model.eval(), folder


def _shape(config: FamilySpeedConfig, family: Family, vocab_size: int) -> EncoderShape:
    width = config.hidden_size
    return ENCODER_FAMILIES[family].shape(
        num_layers=config.num_layers,
        hidden_size=width,
        num_attention_heads=config.num_attention_heads,
        vocab_size=vocab_size,
        ffn_hidden_size=3 * width // 2 if family == "modernbert" else 4 * width,
    )  # type: ignore[call-arg]


def _write_vocabulary(config: FamilySpeedConfig, family: Family, folder: Path, texts: Sequence[str]) -> Path:
    """A vocabulary of the family's kind, trained on the texts."""
    write: dict[Family, Callable[..., Path]] = {
        "roberta": write_roberta_bpe,
        "xlm-roberta": write_unigram,
        "modernbert": write_modernbert_bpe,
    }
    if family in write:
        return write[family](folder, texts, num_tokens=config.vocab_size)
    # the ids of special tokens are those that the families' models expect
    names = ("pad", "unk", "cls", "sep", "mask") if family != "mpnet" else ("cls", "pad", "sep", "unk", "mask")
    frame = MPNET_FRAME if family == "mpnet" else BERT_FRAME
    return _write_wordpiece(folder, texts, [frame[name] for name in names], config.vocab_size)


def _write_wordpiece(folder: Path, texts: Iterable[str], special: list[str], num_tokens: int) -> Path:
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=num_tokens, special_tokens=special, show_progress=False)
    folder.mkdir()
    tokenizer.save_model(str(folder))
    return folder / "vocab.txt"


if __name__ == "__main__":
    run_program(FamilySpeedConfig, main)
