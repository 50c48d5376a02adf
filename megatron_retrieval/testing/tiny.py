"""Models and batches small enough for a test to run in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from megatron_retrieval.data.stores.corpus_builder import CorpusBuilderConfig, build_corpus
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.dual_encoder import DualEncoderConfig
from megatron_retrieval.testing.tiny_sentencepiece import write_sentencepiece
from megatron_retrieval.types.contrastive import ContrastiveBatch, Numbers
from megatron_retrieval.types.tokens import TokenBatch


def tiny_dual_encoder_config(*, dropout: float = 0.0, shared: bool = False) -> DualEncoderConfig:
    """Two layers of 32 units over 64 words; no dropout unless asked for."""
    bert = BertConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=16,
        vocab_size=64,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        init_method_std=0.2,
    )
    return DualEncoderConfig(encoder=bert, biencoder_shared_query_context_model=shared)


def random_texts(num_texts: int, longest: int, seed: int) -> TokenBatch:
    """Texts of 2 to `longest` random tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (num_texts,), generator=generator)
    return TokenBatch(torch.randint(1, 64, (num_texts, longest), generator=generator), lengths)


def contrastive_share(
    num_questions: int,
    num_hard_negatives: int,
    seed: int,
    dp_rank: int = 0,
    dp_size: int = 1,
    *,
    num_positives: int = 1,
) -> ContrastiveBatch:
    """One rank's share of a random global batch that is the same for any `dp_size`; the last share may be uneven. The
    first question has but one positive."""
    per_rank = -(-num_questions // dp_size)
    padded, stride = per_rank * dp_size, num_positives + num_hard_negatives
    questions, passages = random_texts(num_questions, 8, seed), random_texts(num_questions * stride, 14, seed + 1)
    excluded = torch.rand(num_questions, num_questions * stride, generator=torch.Generator().manual_seed(seed)) < 0.1
    own = torch.arange(num_questions)[:, None]
    excluded[own, own * stride + torch.arange(num_positives)] = False
    excluded[:, 1:num_positives] = True
    fill = padded - num_questions
    all_excluded = torch.ones(padded, padded * stride, dtype=torch.bool)
    all_excluded[:num_questions, : num_questions * stride] = excluded
    teacher = torch.randn(num_questions, stride, generator=torch.Generator().manual_seed(seed))
    teacher[1::2, -1:] = torch.nan  # which the teacher did not score
    teacher = torch.cat([teacher, torch.full((fill, stride), torch.nan)])
    rows = torch.arange(padded)
    all_excluded[rows, rows * stride] = False  # a question's own positive is always a candidate, a filler's too
    mine = slice(dp_rank * per_rank, (dp_rank + 1) * per_rank)
    slots = slice(mine.start * stride, mine.stop * stride)
    return ContrastiveBatch(
        _with_fillers(questions, fill, mine),
        _with_fillers(passages, fill * stride, slots),
        (rows < num_questions)[mine],
        all_excluded[mine],
        num_questions,
        num_positives=num_positives,
        teacher=teacher[mine],
        numbers=Numbers(_numbers(num_questions, fill)[mine], _numbers(num_questions * stride, fill * stride)[slots]),
    )


def _numbers(num_real: int, num_fillers: int) -> torch.Tensor:
    return torch.cat([torch.arange(num_real), torch.full((num_fillers,), -1)])


def _with_fillers(texts: TokenBatch, num_fillers: int, part: slice) -> TokenBatch:
    ids = torch.cat([texts.ids, torch.ones(num_fillers, texts.ids.size(1), dtype=torch.int64)])
    return TokenBatch(ids[part], torch.cat([texts.lengths, torch.full((num_fillers,), 2)])[part])


def write_tiny_dpr(folder: Path, num_questions: int = 22) -> tuple[Path, Path]:
    """A DPR biencoder file about made-up keys, and its vocabulary.

    Each question asks for one key word, which its positive passage holds and the others do not.

    Returns:
        Paths of the biencoder JSON and of vocab.txt.
    """
    keys = [f"key{number}" for number in range(num_questions)]
    words = ["where", "is", "the", "box", "of", "stands", "in", "room", "corner", "title"]
    vocab = folder / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *keys]) + "\n")

    def context(number: int) -> dict[str, str]:
        text = f"the box of {keys[number]} stands in the corner of room {keys[-1 - number]}"
        return {"title": f"title {keys[number]}", "text": text, "passage_id": str(number + 1)}

    records = [
        {
            "dataset": "tiny",
            "question": f"where is {key}",
            "answers": [key],
            "positive_ctxs": [context(number)],
            "negative_ctxs": [],
            "hard_negative_ctxs": [context((number + step) % num_questions) for step in (1, 2)],
        }
        for number, key in enumerate(keys)
    ]
    data = folder / "biencoder.json"
    data.write_text(json.dumps(records))
    return data, vocab


def write_tiny_evidence(folder: Path, num_distractors: int = 1100, vocab: Path | None = None) -> Path:
    """The passages that hold the answers of `write_tiny_dpr` in the same folder, between enough passages without
    answers that the embeddings have several shards.

    Args:
        vocab: file of an encoder's vocabulary; default: the one written with the questions.

    Returns:
        The evidence folder.
    """
    data, own = write_tiny_dpr(folder)
    words = ["the", "box", "stands", "in", "corner", "of", "room"]
    passages = [
        {"id": f"d{number}", "title": "title", "text": " ".join(words[number // 7**place % 7] for place in range(5))}
        for number in range(num_distractors)
    ]
    for number, record in enumerate(json.loads(data.read_text())):
        gold = record["positive_ctxs"][0]
        place = number * num_distractors // 22 + number
        passages.insert(place, {"id": gold["passage_id"], "title": gold["title"], "text": gold["text"]})
    source = folder / "passages.jsonl"
    source.write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    output = str(folder / "evidence")
    settings = EvidenceBuilderConfig(input=(str(source),), output=output, vocab_file=str(vocab or own))
    build_evidence(settings)
    return folder / "evidence"


def write_tiny_corpus(
    folder: Path,
    num_documents: int = 24,
    num_sentences: int = 6,
    *,
    sentencepiece: bool = False,
    vocab: Path | None = None,
) -> Path:
    """Documents about made-up keys, for unsupervised pretraining.

    Each sentence of a document holds the document's key, which leads from a sentence to its block.

    Args:
        sentencepiece: tokenized for a T5, with a model of `NUM_PIECES` pieces trained on the text itself.
        vocab: file of an encoder's vocabulary; default: one of the text's words is written.

    Returns:
        The corpus folder.
    """
    keys = [f"key{number}" for number in range(num_documents)]
    documents = [
        {
            "title": f"Title {place % 10}",
            "text": " ".join(f"The box of {key} stands in room {(place + n) % 10}." for n in range(num_sentences)),
        }
        for place, key in enumerate(keys)
    ]
    source = folder / "corpus.jsonl"
    source.write_text("".join(json.dumps(document) + "\n" for document in documents))
    vocabulary: dict[str, Any]
    if sentencepiece:
        texts = [text for document in documents for text in document.values()]
        model = write_sentencepiece(folder / "corpus.model", texts, model_type="bpe")
        vocabulary = {"tokenizer_model": str(model)}
    elif vocab is not None:
        vocabulary = {"vocab_file": str(vocab)}
    else:
        words = ["the", "box", "of", "stands", "in", "room", "title", "."]
        rooms = [str(number) for number in range(10)]
        vocab = folder / "corpus-vocab.txt"
        vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *rooms, *keys]) + "\n")
        vocabulary = {"vocab_file": str(vocab)}
    build_corpus(CorpusBuilderConfig(input=(str(source),), output=str(folder / "corpus"), **vocabulary))
    return folder / "corpus"


def write_tiny_reading(folder: Path, num_questions: int = 24) -> tuple[Path, Path]:
    """Questions with retrieved passages, and the vocabulary of both: what an extractive reader learns in a few steps.

    The answer is the word after "room", which only one of a question's passages holds.

    Returns:
        Paths of a DPR results.json and of vocab.txt.
    """
    keys = [f"key{number}" for number in range(num_questions)]
    words = ["where", "is", "the", "box", "of", "stands", "in", "room", "corner", "title"]
    vocab = folder / "reading-vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *keys]) + "\n")

    def contexts(number: int) -> list[dict[str, str]]:
        texts = [f"the corner of {keys[number - step]} stands in the box" for step in (1, 2, 3)]
        texts.insert(number % 4, f"the box of {keys[number]} stands in room {keys[-1 - number]} of the corner")
        return [{"id": f"{number}-{n}", "title": "title", "text": text, "score": "1"} for n, text in enumerate(texts)]

    records = [
        {"question": f"where is {key}", "answers": [keys[-1 - number]], "ctxs": contexts(number)}
        for number, key in enumerate(keys)
    ]
    data = folder / "reading.json"
    data.write_text(json.dumps(records))
    return data, vocab
