"""Vocabularies of a `tokenizer.json`, small enough to train in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from megatron_retrieval.testing.tiny_sentencepiece import SENTENCES
from megatron_retrieval.utils.files import write_json

END, PAD = "<|end|>", "<|pad|>"
#: in the order of their ids
ROBERTA_SPECIAL = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}


def write_byte_bpe(
    folder: Path, texts: Iterable[str] = SENTENCES, *, num_tokens: int = 300, ends_texts: bool = False
) -> Path:
    """Write a `tokenizer.json` with a `tokenizer_config.json`, trained on `texts`, into a folder.

    Args:
        ends_texts: Hugging Face's tokenizer writes the end token behind every text, as those of embedders do.

    Returns:
        The path of the first.
    """
    tokenizer = _trained(texts, num_tokens, [END, PAD])
    if ends_texts:
        tokenizer.post_processor = processors.TemplateProcessing(f"$A {END}", f"$A $B {END}", [(END, 0)])
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": PAD}
    return _write(folder, tokenizer, names)


def write_roberta_bpe(folder: Path, texts: Iterable[str] = SENTENCES, *, num_tokens: int = 300) -> Path:
    """As `write_byte_bpe`, with RoBERTa's special tokens: <s> text </s>, and <s> text </s> </s> text </s>."""
    tokenizer = _trained(texts, num_tokens, list(ROBERTA_SPECIAL.values()))
    begin, end = (ROBERTA_SPECIAL[name] for name in ("bos", "eos"))
    tokenizer.post_processor = processors.RobertaProcessing((end, 2), (begin, 0), add_prefix_space=False)
    names = {f"{name}_token": token for name, token in ROBERTA_SPECIAL.items()}
    return _write(folder, tokenizer, {"tokenizer_class": "RobertaTokenizer", **names})


def write_modernbert_bpe(folder: Path, texts: Iterable[str] = SENTENCES, *, num_tokens: int = 300) -> Path:
    """As `write_byte_bpe`, with BERT's special tokens: [CLS] text [SEP], and [CLS] text [SEP] text [SEP]."""
    names = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]", "unk": "[UNK]"}
    tokenizer = _trained(texts, num_tokens, list(names.values()))
    frame = [("[CLS]", 0), ("[SEP]", 1)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", frame)
    special = {f"{name}_token": token for name, token in names.items()}
    return _write(folder, tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast", **special})


def write_unigram(folder: Path, texts: Iterable[str] = SENTENCES, *, num_tokens: int = 90) -> Path:
    """As `write_roberta_bpe`, a unigram model of XLM-R's kind."""
    *special, mask = ROBERTA_SPECIAL.values()
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=num_tokens, special_tokens=special, unk_token=ROBERTA_SPECIAL["unk"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([mask])
    frame = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", frame)
    names = {f"{name}_token": token for name, token in ROBERTA_SPECIAL.items()}
    return _write(folder, tokenizer, {"tokenizer_class": "XLMRobertaTokenizer", **names})


def _trained(texts: Iterable[str], num_tokens: int, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _write(folder: Path, tokenizer: Tokenizer, names: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", names)
    return folder / "tokenizer.json"
