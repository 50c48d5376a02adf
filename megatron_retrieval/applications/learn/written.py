"""Questions that a language model writes for passages; those that find their passage again teach the encoder
(Alberti et al. 2019, arXiv 1906.05416; Dai et al. 2022, Promptagator, arXiv 2209.11755)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_retrieval.applications.learn.questions import fine_tune
from megatron_retrieval.applications.learn.ways import WAYS, Adaptation, Way
from megatron_retrieval.applications.open_reader import ReaderConfig, open_reader
from megatron_retrieval.applications.search import open_search
from megatron_retrieval.data.files.dpr_json import biencoder_context, write_json_list
from megatron_retrieval.data.files.passage_files import read_passages
from megatron_retrieval.data.files.passage_questions import PassagesToReadConfig, ReaderQuestion
from megatron_retrieval.data.layouts.prompt import PromptFormatConfig
from megatron_retrieval.errors import ConfigError, DataError
from megatron_retrieval.retrieval.encode_batches import EncodeConfig
from megatron_retrieval.retrieval.reranker import RerankConfig
from megatron_retrieval.types.questions import Passage
from megatron_retrieval.utils.files import atomic_file
from megatron_retrieval.utils.logging import get_logger
from megatron_retrieval.utils.progress import progress_bar
from megatron_retrieval.utils.seeds import fractions

_TASK = "Write one short question that the text answers."
#: of language models; other readers have been trained with a layout of their own
_PROMPT = PromptFormatConfig(
    prompt_instruction="Read the text below.",
    prompt_context="### Text:",
    prompt_question="### Task:",
    prompt_answer="### Question:",
)
#: passages written for, and questions searched, at a time
_BLOCK = 32
_LEAST_WORDS = 3


def train_on_written(adaptation: Adaptation) -> Path:
    """Fine-tune on the questions that find their passage first, with the other passages of a batch as negatives."""
    data = adaptation.training.folder / "written.json"
    if not data.exists():
        passages = _chosen(adaptation)
        written = _write(adaptation, passages)
        records = list(_finding(adaptation, passages, written))
        get_logger("learn").info("%d of %d written questions find their passage first", len(records), len(written))
        if not records:
            raise DataError(adaptation.passages, "no question that --question-writer writes finds its passage again")
        write_json_list(data, records)
    return fine_tune(adaptation.start, data, adaptation.training, num_hard_negatives=0)


def _chosen(adaptation: Adaptation) -> list[Passage]:
    """As many passages as training can see once, drawn by the seed."""
    passages = [passage for _, passage in read_passages(adaptation.passages)]
    training = adaptation.training
    draws = fractions(np.arange(len(passages)), training.seed, "written-questions")
    rows = np.argsort(draws)[: training.steps * training.batch_size]
    return [passages[row] for row in sorted(rows.tolist())]


def _write(adaptation: Adaptation, passages: Sequence[Passage]) -> list[str]:
    """A question for each passage, behind those that an earlier call has written."""
    if adaptation.writer is None:
        raise ConfigError("--adapt written-questions needs a language model: give --question-writer.")
    path = adaptation.training.folder / "written.jsonl"
    written = _whole_lines(path)
    with atomic_file(path) as file:
        file.writelines(json.dumps(text) + "\n" for text in written)
    if len(written) < len(passages):
        config = ReaderConfig(reader=adaptation.writer)
        opened = open_reader(config, PassagesToReadConfig(num_passages=1), adaptation.training.topology, prompt=_PROMPT)
        left = passages[len(written) :]
        with path.open("a", encoding="utf-8") as file, progress_bar("writing", "questions", len(left)) as bar:
            for start in range(0, len(left), _BLOCK):
                block = [ReaderQuestion(each.id, _TASK, (), (each,), (0.0,)) for each in left[start : start + _BLOCK]]
                texts = [prediction.text for prediction in opened.reader.answer(block)]
                file.writelines(json.dumps(text) + "\n" for text in texts)
                file.flush()
                written += texts
                bar.update(len(block))
    return written


def _whole_lines(path: Path) -> list[str]:
    """What a stopped call has written; its last line may be cut off."""
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def _finding(adaptation: Adaptation, passages: Sequence[Passage], written: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Training data of the questions whose passage is the first that is found, or that a reranker puts first."""
    options = replace(adaptation.searched.options, rerank=RerankConfig(rerank=adaptation.reranker))
    searched = replace(adaptation.searched, options=options)
    session = open_search(searched, EncodeConfig(), adaptation.training.topology)
    for start in range(0, len(passages), _BLOCK):
        block = slice(start, start + _BLOCK)
        for passage, question, found in zip(
            passages[block], written[block], session.search(written[block], 1), strict=True
        ):
            is_first = bool(found) and found[0][0].id == passage.id
            if is_first and len(question.split()) >= _LEAST_WORDS:
                context = biencoder_context(passage, score=0)
                yield {"question": question, "answers": [], "positive_ctxs": [context], "hard_negative_ctxs": []}


WAYS.add(
    Way(
        "written-questions",
        "questions that --question-writer writes for passages, if they find their passage again",
        train_on_written,
    )
)
