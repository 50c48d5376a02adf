"""A byte-level BPE small enough to train in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from megatron_retrieval.testing.tiny_sentencepiece import SENTENCES
from megatron_retrieval.utils.files import write_json

END, PAD = "<|end|>", "<|pad|>"


def write_byte_bpe(
    folder: Path, texts: Iterable[str] = SENTENCES, *, num_tokens: int = 300, ends_texts: bool = False
) -> Path:
    """Write a `tokenizer.json` with a `tokenizer_config.json`, trained on `texts`, into a folder.

    Args:
        ends_texts: Hugging Face's tokenizer writes the end token behind every text, as those of embedders do.

    Returns:
        The path of the first.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    if ends_texts:
        tokenizer.post_processor = processors.TemplateProcessing(f"$A {END}", f"$A $B {END}", [(END, 0)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": PAD}
    write_json(folder / "tokenizer_config.json", names)
    return folder / "tokenizer.json"
