"""Evidence and a random encoder of its vocabulary, in the place of what users bring."""

from __future__ import annotations

from pathlib import Path

from programs import command, succeed

from megatron_retrieval.testing.tiny import write_tiny_evidence
from megatron_retrieval.testing.tiny_hf import VOCABULARY, save_with_vocabulary, tiny_bert


def write_evidence_and_encoder(folder: Path) -> tuple[Path, Path]:
    """Write `passages.jsonl`, questions and an imported encoder into a folder.

    Returns:
        The checkpoint of the encoder and its vocabulary.
    """
    write_tiny_evidence(folder)
    save_with_vocabulary(tiny_bert(), folder / "hf")
    words = (folder / "vocab.txt").read_text().splitlines()
    unused = [f"[unused{number}]" for number in range(len(VOCABULARY) - len(words))]
    vocab = folder / "hf" / "vocab.txt"
    vocab.write_text("\n".join([*words, *unused]) + "\n")
    imported = ("--format", "hf-bert", "--input", folder / "hf", "--output", folder / "ck")
    succeed(command("tools/import_checkpoint.py", *imported))
    return folder / "ck", vocab
