"""A tiny SentencePiece model, trained in a moment."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceTrainer

NUM_PIECES = 60
SENTENCES = (
    "the capital of France is Paris and the capital of Italy is Rome",
    "who wrote the play of the prince of Denmark",
    "a river runs through the city in 1889, or did it?",
    "question: where is the tower? context: the tower stands in Paris.",
)
#: T5's special tokens; SentencePiece's own are others
T5_SPECIAL = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


def write_sentencepiece(path: Path, sentences: Sequence[str] = SENTENCES, **settings: Any) -> Path:
    """Train a model of T5's kind on a few sentences and write it.

    Args:
        settings: of SentencePiece's trainer, in place of T5's and the number of pieces.
    """
    model = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        minloglevel=2,
        **{"vocab_size": NUM_PIECES, **T5_SPECIAL, **settings},
    )
    path.write_bytes(model.getvalue())
    return path
