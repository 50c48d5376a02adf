"""End-to-end training: every objective's gradients are those of a plain, dense computation over all passages, at any
layout of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from megatron_retrieval.data.asked import AskedBatch, AskedDataConfig, AskedQuestions
from megatron_retrieval.data.evidence import EvidenceStore
from megatron_retrieval.data.evidence_builder import EvidenceBuilderConfig, build_evidence
from megatron_retrieval.data.formatting import TextFormatConfig
from megatron_retrieval.data.fusion_layout import FusionFormatConfig, FusionLayout
from megatron_retrieval.data.questions import AskedQuestionsConfig
from megatron_retrieval.data.retrieved_texts import RetrievedTexts
from megatron_retrieval.index import ShardedIndex
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.bert_seq2seq import BertSeq2Seq, BertSeq2SeqConfig
from megatron_retrieval.models.dual_encoder import DualEncoder, DualEncoderConfig
from megatron_retrieval.models.end_to_end import EndToEndModel, FreezeConfig
from megatron_retrieval.models.fusion_reader import FusionEncodeConfig, FusionReader
from megatron_retrieval.models.seq2seq import EncoderDecoder
from megatron_retrieval.models.sharding import gather_full
from megatron_retrieval.parallel import ProcessTopology
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.training.answer_objectives import OBJECTIVES
from megatron_retrieval.training.end_to_end_step import EndToEndStep, EndToEndStepConfig
from megatron_retrieval.training.passage_search import PassageSearch, PassageSearchConfig
from megatron_retrieval.training.trainer import reduce_metrics
from megatron_retrieval.types import TokenBatch

NUM_PASSAGES, NUM_QUESTIONS = 6, 5
WORDS = [f"w{number}" for number in range(40)]
TEXT_FORMAT = TextFormatConfig(query_seq_length=12, retriever_seq_length=20)
LAYOUT = FusionFormatConfig(
    question_seq_length=8, reader_seq_length=30, question_prefix="", title_prefix="", passage_prefix=""
)
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evidence and questions about the same words."""
    folder = tmp_path_factory.mktemp("end_to_end")
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
    lines = [f"{WORDS[n * 6]} {WORDS[n * 3 + 1]}\t['{WORDS[n * 5 + 2]} {WORDS[n + 9]}']" for n in range(NUM_QUESTIONS)]
    (folder / "train.qa.csv").write_text("\n".join(lines) + "\n")
    return folder


class Setting:
    """Everything that a step needs, the same at any layout."""

    def __init__(self, topology: ProcessTopology, folder: Path, objective: str = "individual-topk", k: int = 4) -> None:
        bert: dict[str, Any] = {
            "num_layers": 1,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "ffn_hidden_size": 32,
            "vocab_size": 45,
        }
        bert |= {"max_position_embeddings": 32, "hidden_dropout": 0.0, "attention_dropout": 0.0, "init_method_std": 0.3}
        retriever = DualEncoder(DualEncoderConfig(bert=BertConfig(**bert)), topology, seed=1)
        reader = BertSeq2Seq(BertSeq2SeqConfig(**bert), topology, start_id=2, end_id=3, seed=2)
        self.topology = topology
        self.model = EndToEndModel(retriever, reader, FreezeConfig(), first_score_weight=0.7)
        self.evidence = EvidenceStore(folder / "evidence")
        tokenizer = self.evidence.tokenizer
        layout = FusionLayout(LAYOUT, tokenizer)
        self.texts = RetrievedTexts(self.evidence, layout, tokenizer, max_answer_length=6)
        self.search = PassageSearch(
            PassageSearchConfig(num_passages=k), retriever, self.evidence, TEXT_FORMAT, topology, encode_batch_size=3
        )
        with torch.no_grad():
            self.search.index = ShardedIndex(
                retriever.eval().encode_passages(self.search.tokens(_all_rows())), topology
            )
        self.reader = FusionReader(reader, FusionEncodeConfig(encode_batch_size=3))
        config = EndToEndStepConfig(objective=objective, micro_batch_size=2, passage_batch_size=4)  # type: ignore[arg-type]
        self.step = EndToEndStep(self.model, self.reader, self.search, self.texts, config, topology, seed=3)
        data = AskedDataConfig(train_data=(str(folder / "train.qa.csv"),), asked=AskedQuestionsConfig())
        self.questions = AskedQuestions(data, TEXT_FORMAT, tokenizer, self.evidence, seed=4)

    def batch(self) -> AskedBatch:
        """This rank's share."""
        return self.questions.batch(range(NUM_QUESTIONS), 0, 0, self.topology.dp_rank, self.topology.dp_size)


def _all_rows() -> Tensor:
    return torch.arange(NUM_PASSAGES)


def _step_gradients(topology: ProcessTopology, folder: str, k: int) -> Found:
    """Of every objective: the gradients of all parameters, and the metrics."""
    found: Found = {}
    for objective in OBJECTIVES:
        setting = Setting(topology, Path(folder), objective, k)
        parallel = DataParallelModel(setting.model, topology)
        parallel.zero_gradients()
        metrics = reduce_metrics(setting.step.forward_backward(setting.batch(), 0, 1.0), topology)
        parallel.reduce_gradients()
        named: Any = setting.model.named_parameters()
        gradients = {name: gather_full(p, topology, p.main_grad).clone() for name, p in named}
        evaluated = reduce_metrics(setting.step.evaluate(setting.batch()), topology)
        found[objective] = {"gradients": gradients, "metrics": metrics, "evaluated": evaluated}
    return found


def _token_likelihoods(model: EncoderDecoder, states: Tensor, labels: Tensor, bias: Tensor | None) -> Tensor:
    """[L] of one answer, given encoder states [S, D] and what is added to the attention of each of them."""
    decoder_ids = torch.cat([torch.tensor([model.start_id]), labels[:-1]])
    key_bias = None if bias is None else bias[None, None, None]
    decoded = model.decoder(decoder_ids[None], states[None], key_bias)
    return model.logits(decoded)[0].log_softmax(1)[torch.arange(len(labels)), labels]


def _dense_loss(setting: Setting, objective: str, k: int) -> Tensor:
    """The objective written down once more: one question and one passage at a time, every passage scored."""
    retriever, reader = setting.model.retriever, setting.model.reader
    batch = setting.questions.batch(range(NUM_QUESTIONS), 0, 0)
    queries, passages = (
        retriever.encode_queries(batch.queries),
        retriever.encode_passages(setting.search.tokens(_all_rows())),
    )
    losses = []
    for place, question in enumerate(batch.questions):
        scores = queries[place] @ passages.T
        best = scores.topk(k).indices
        log_prior = F.log_softmax(scores[best] / 16**0.5, 0)
        labels = setting.texts.labels([batch.targets[place]])[0]
        states = []
        for row in best.tolist():
            text, _ = setting.texts.texts([question.text], torch.tensor([[row]]).numpy())
            length = int(text.lengths[0])
            states.append(reader.encoder(TokenBatch(text.ids[:, :length], text.lengths))[0])
        each = torch.stack([_token_likelihoods(reader, state, labels, None) for state in states])
        weights = setting.model.score_weight * log_prior
        bias = torch.cat([weight.expand(len(state)) for weight, state in zip(weights, states, strict=True)])
        together = _token_likelihoods(reader, torch.cat(states), labels, None).sum()
        marginal = (log_prior + each.sum(1).detach()).logsumexp(0)
        posterior = F.softmax(each.sum(1).detach(), 0)
        losses.append(
            {
                "individual-topk": lambda: -(log_prior + each.sum(1)).logsumexp(0),  # noqa: B023
                "rag-token": lambda: -(log_prior[:, None] + each).logsumexp(0).sum(),  # noqa: B023
                "joint-topk": lambda: -_token_likelihoods(reader, torch.cat(states), labels, bias).sum(),  # noqa: B023
                "fid": lambda: -together,  # noqa: B023
                "emdr2": lambda: -together - marginal,  # noqa: B023
                "distillation": lambda: -together + (posterior * (posterior.log() - log_prior)).sum(),  # noqa: B023
            }[objective]()
        )
    return torch.stack(losses).mean()


def _dense_gradients(topology: ProcessTopology, folder: str, k: int) -> Found:
    found: Found = {}
    for objective in OBJECTIVES:
        setting = Setting(topology, Path(folder), objective, k)
        setting.model.train()
        loss = _dense_loss(setting, objective, k)
        loss.backward()
        named = setting.model.named_parameters()
        zeros = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named}
        gradients = {name: gather_full(p, topology, zeros[name]) for name, p in setting.model.named_parameters()}
        found[objective] = {"gradients": gradients, "loss": loss.item()}
    return found


@pytest.fixture(scope="module")
def dense(folder: Path) -> Found:
    (result,) = run_on_ranks(_dense_gradients, 1, str(folder), 4)
    return result


@pytest.mark.parametrize(("num_ranks", "tp_size"), [(1, 1), (2, 1), (2, 2), (3, 1)])
def test_gradients_are_those_of_a_dense_computation(folder: Path, dense: Found, num_ranks: int, tp_size: int) -> None:
    """With three ranks the last one has less to do than the others."""
    results = run_on_ranks(_step_gradients, num_ranks, str(folder), 4, tensor_model_parallel_size=tp_size)
    for objective, wanted in dense.items():
        found = results[0][objective]
        assert found["metrics"]["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert found["evaluated"]["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert found["evaluated"]["num_examples"] == NUM_QUESTIONS
        for name, gradient in wanted["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-4, atol=1e-6)


def test_the_right_parts_learn(dense: Found) -> None:
    """Of the references themselves: without scores in its attention, a reader teaches the retriever nothing."""

    def learns(objective: str, part: str) -> bool:
        gradients = dense[objective]["gradients"]
        return any(bool(gradient.any()) for name, gradient in gradients.items() if name.startswith(part))

    for objective in OBJECTIVES:
        assert learns(objective, "reader.")
        assert learns(objective, "retriever.towers.query") == (objective != "fid")
        assert learns(objective, "retriever.towers.passage") == (objective != "fid")
        assert learns(objective, "score_weight") == (objective == "joint-topk")
