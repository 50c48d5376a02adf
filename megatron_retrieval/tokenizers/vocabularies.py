"""The kinds of vocabulary: how each is named, kept and opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_retrieval.tokenizers import huggingface
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.tokenizers.sentencepiece import SentencePieceTokenizer
from megatron_retrieval.tokenizers.unigram import UnigramTokenizer, is_unigram
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer
from megatron_retrieval.utils.registry import Registry


@dataclass(frozen=True, kw_only=True)
class VocabularyKind:
    """A kind of vocabulary.

    Attributes:
        name: in manifests and messages.
        about: what it is, in one clause.
        file_name: of the vocabulary in folders of token ids and in checkpoints.
        flag: names the file when a folder of token ids is built.
        library: tokenizes; another version may give other ids.
        open: (file, settings that a manifest keeps of it) to the vocabulary. Raises DataError where the file is
            missing or damaged, KeyError where a setting is missing.
        from_huggingface: a folder of Hugging Face's to its vocabulary. Raises CheckpointError where it has none.
        to_huggingface: (vocabulary, folder, longest sequence in tokens or None) writes the files of such a folder.
    """

    name: str
    about: str
    file_name: str
    flag: str
    library: str
    open: Callable[[Path, Mapping[str, Any]], Vocabulary]
    from_huggingface: Callable[[Path], Vocabulary]
    to_huggingface: Callable[[Any, Path, int | None], None]


VOCABULARIES: Registry[VocabularyKind] = Registry("kind of vocabulary")
VOCABULARIES.add(
    VocabularyKind(
        name=WordPieceTokenizer.kind,
        about="words in pieces, as BERT has them (vocab.txt)",
        file_name="vocab.txt",
        flag="--vocab-file",
        library="tokenizers",
        open=lambda path, settings: WordPieceTokenizer(path, settings["lower_case"]),
        from_huggingface=huggingface.read_wordpiece,
        to_huggingface=huggingface.write_wordpiece,
    )
)
VOCABULARIES.add(
    VocabularyKind(
        name=SentencePieceTokenizer.kind,
        about="pieces of text with its spaces, as T5 has them (spiece.model)",
        file_name="spiece.model",
        flag="--tokenizer-model",
        library="sentencepiece",
        open=lambda path, _: SentencePieceTokenizer(path),
        from_huggingface=huggingface.read_sentencepiece,
        to_huggingface=huggingface.write_sentencepiece,
    )
)
VOCABULARIES.add(
    VocabularyKind(
        name=ByteBpeTokenizer.kind,
        about="pieces of text, of bytes where need be, as GPT-2 and Llama 3 have them (tokenizer.json)",
        file_name="tokenizer.json",
        flag="--vocab-file",
        library="tokenizers",
        open=lambda path, _: ByteBpeTokenizer(path),
        from_huggingface=huggingface.read_byte_bpe,
        to_huggingface=huggingface.write_tokenizer_json,
    )
)


VOCABULARIES.add(
    VocabularyKind(
        name=UnigramTokenizer.kind,
        about="pieces of words, as XLM-R has them (tokenizer.json)",
        file_name="tokenizer.json",
        flag="--vocab-file",
        library="tokenizers",
        open=lambda path, _: UnigramTokenizer(path),
        from_huggingface=huggingface.read_unigram,
        to_huggingface=huggingface.write_tokenizer_json,
    )
)


def open_encoder_vocabulary(path: str | Path, lower_case: bool = True) -> Vocabulary:
    """The vocabulary of an encoder, of the kind that its file is of: a vocab.txt, or a tokenizer.json.

    Args:
        lower_case: of a vocab.txt; the other file says for itself.

    Raises:
        DataError: the file is missing or damaged.
    """
    if Path(path).suffix != ".json":
        return WordPieceTokenizer(path, lower_case)
    return UnigramTokenizer(path) if is_unigram(path) else ByteBpeTokenizer(path)


def building_flags(vocabulary: Vocabulary) -> str:
    """The words that build a folder of token ids with this vocabulary."""
    settings = {key.replace("_", "-"): value for key, value in vocabulary.settings().items()}
    # every setting of a vocabulary is a switch that is on unless it is turned off
    switched_off = [f" --no-{name}" for name, is_on in settings.items() if not is_on]
    return f"{VOCABULARIES[vocabulary.kind].flag} {vocabulary.path}{''.join(switched_off)}"
