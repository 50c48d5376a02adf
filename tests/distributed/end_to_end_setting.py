"""What the tests of end-to-end steps share: evidence and questions about the same words, and tiny models over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_retrieval.data.examples.open_questions import AskedBatch, AskedQuestions
from megatron_retrieval.data.files.question_files import AskedQuestionsConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.data.stores.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.data.stores.question_writer import QuestionSource, write_question_store
from megatron_retrieval.data.stores.questions import QuestionStore
from megatron_retrieval.index.exact.sharded import ShardedIndex
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.models.end_to_end import EndToEndModel, FreezeConfig
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.full_tensors import gather_full
from megatron_retrieval.training.steps.end_to_end_step import EndToEndStep, EndToEndStepConfig
from megatron_retrieval.training.steps.passage_search import PassageSearch, TopkConfig
from megatron_retrieval.training.steps.readings import ReaderSide
from megatron_retrieval.training.trainer import reduce_metrics
from megatron_retrieval.types.search import NULL_ROW
from megatron_retrieval.types.tokens import TokenBatch

NUM_PASSAGES = 6
WORDS = [f"w{number}" for number in range(40)]
TEXT_FORMAT = TextFormatConfig(query_seq_length=12, retriever_seq_length=20)
SHAPE: dict[str, Any] = {
    "num_layers": 1,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "ffn_hidden_size": 32,
    "vocab_size": 45,
    "max_position_embeddings": 32,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "init_method_std": 0.3,
}
Found = dict[str, dict[str, Any]]


def write_inputs(folder: Path, questions: dict[str, list[str]]) -> Path:
    """Evidence whose passage n has the title wn and a text of 3 to 5 words from w5n on, and questions with answers."""
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    passages = [
        {"id": f"p{n}", "title": WORDS[n], "text": " ".join(WORDS[n * 5 + i] for i in range(3 + n % 3))}
        for n in range(NUM_PASSAGES)
    ]
    (folder / "passages.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    settings = EvidenceBuilderConfig(
        input=(str(folder / "passages.jsonl"),), output=str(folder / "evidence"), vocab_file=str(folder / "vocab.txt")
    )
    build_evidence(settings)
    lines = [f"{question}\t{answers!r}" for question, answers in questions.items()]
    (folder / "train.qa.csv").write_text("\n".join(lines) + "\n")
    vocabulary = EvidenceStore(folder / "evidence").vocabulary
    files, asked = (str(folder / "train.qa.csv"),), AskedQuestionsConfig()
    source = QuestionSource(files=files, asked=asked, retriever=vocabulary, reader=vocabulary)
    write_question_store(folder / "questions", source)
    return folder


class Setting:
    """Retriever, reader, search and questions, the same at any layout.

    Args:
        reader: of this shape.
        k: passages read for a question.
        null_passage: the last of them is the null passage.
        shape: of the retriever.
    """

    def __init__(
        self,
        topology: ProcessTopology,
        folder: Path,
        reader: Any,
        k: int,
        freeze: FreezeConfig | None = None,
        shape: dict[str, Any] = SHAPE,
        *,
        null_passage: bool = False,
    ) -> None:
        retriever = DualEncoder(DualEncoderConfig(encoder=BertConfig(**shape)), topology, seed=1)
        self.topology = topology
        self.model = EndToEndModel(retriever, reader, freeze or FreezeConfig(), first_score_weight=0.7)
        self.evidence = EvidenceStore(folder / "evidence")
        self.tokenizer = self.evidence.vocabulary
        candidates = TopkConfig(num_passages=k, null_passage=null_passage)
        self.search = PassageSearch(
            candidates,
            retriever,
            self.evidence,
            TEXT_FORMAT,
            topology,
            encode_batch_size=3,
            frozen=freeze is not None and freeze.freeze_passage_encoder,
        )
        with torch.no_grad():
            passages = self.search.tokens(all_rows()).to(topology.device)
            self.search.index = ShardedIndex(retriever.eval().encode_passages(passages), topology)
        store = QuestionStore(folder / "questions")
        self.questions = AskedQuestions(store, TEXT_FORMAT, self.tokenizer, seed=4)

    def batch(self) -> AskedBatch:
        """This rank's share."""
        return self.questions.batch(range(len(self.questions)), 0, 0, self.topology.dp_rank, self.topology.dp_size)

    def whole_batch(self) -> AskedBatch:
        """That of all ranks."""
        return self.questions.batch(range(len(self.questions)), 0, 0)

    def step(self, readings: ReaderSide, objective: str, **settings: Any) -> dict[str, Any]:
        """The gradients of all parameters, and the metrics of a step and of an evaluation."""
        config = EndToEndStepConfig(objective=objective, micro_batch_size=2, passage_batch_size=4, **settings)
        step = EndToEndStep(self.model, readings, self.search, config, self.topology, seed=3)
        parallel = DataParallelModel(self.model, self.topology)
        parallel.zero_gradients()
        metrics = reduce_metrics(step.forward_backward(self.batch(), 0, 1.0), self.topology)
        parallel.reduce_gradients()
        named: Any = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        gradients = {name: gather_full(p, self.topology, p.main_grad).clone() for name, p in named}
        parts = step.evaluate(self.batch())
        evaluated = {**reduce_metrics(parts, self.topology), "num_examples": float(parts["loss"].over)}
        return {"gradients": gradients, "metrics": metrics, "evaluated": evaluated}

    def dense_step(self, loss: Tensor) -> dict[str, Any]:
        """The gradients of a loss that was computed plainly."""
        loss.backward()
        named = dict(self.model.named_parameters())
        zeros = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named.items()}
        gradients = {name: gather_full(p, self.topology, zeros[name]) for name, p in named.items()}
        return {"gradients": gradients, "loss": loss.item()}


def all_rows() -> Tensor:
    """Of the evidence."""
    return torch.arange(NUM_PASSAGES)


def best_passages(setting: Setting, query: Tensor, k: int, *, null_passage: bool) -> tuple[list[int], Tensor]:
    """The rows of the k candidates of a query vector [D], and their scores [k] by plain products; the null passage is
    written down as [CLS] [SEP] [SEP]."""
    encode = setting.model.retriever.encode_passages
    scores = encode(setting.search.tokens(all_rows())) @ query
    rows = scores.topk(k - null_passage).indices
    if not null_passage:
        return rows.tolist(), scores[rows]
    empty = TokenBatch(torch.tensor([[2, 3, 3]]), torch.tensor([3]))
    return [*rows.tolist(), NULL_ROW], torch.cat([scores[rows], encode(empty) @ query])
