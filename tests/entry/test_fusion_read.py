"""A fusion reader fine-tuned and evaluated as its user does it, from a T5 and from a BERT: exact match rises, the tasks
and layouts agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from programs import command, losses, refuse, succeed

from megatron_retrieval.checkpoint.kinds.fusion_reader import FUSION_READER
from megatron_retrieval.checkpoint.kinds.masked_lm import MASKED_LM
from megatron_retrieval.checkpoint.kinds.t5 import T5_KIND
from megatron_retrieval.models.bert import BertConfig
from megatron_retrieval.models.masked_lm import MaskedLanguageModel
from megatron_retrieval.models.t5 import T5
from megatron_retrieval.models.t5_config import T5Config
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.runs import rewind
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny_sentencepiece import NUM_PIECES, write_sentencepiece
from megatron_retrieval.tokenizers.sentencepiece import SentencePieceTokenizer
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

SHAPE = T5Config(num_layers=1, hidden_size=32, num_attention_heads=2, ffn_hidden_size=64, vocab_size=NUM_PIECES + 100)
FINETUNE, EVALUATE = (("tasks/main.py", "--task", name) for name in ("fusion-finetune", "qa-evaluate"))
CITIES = ("Paris", "Rome", "Italy", "Denmark")
THINGS = ("tower", "play", "river", "prince")
WORDS = ("where", "is", "the", "stands", "in", "?", ".", ":", "question", "title", "context", *THINGS)
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *map(str.lower, CITIES))
BERT = BertConfig(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=2,
    max_position_embeddings=60,
    vocab_size=len(VOCABULARY),
    init_method_std=0.1,
)
LAYOUT = ("--question-seq-length", 24)


class Run(NamedTuple):
    """A reader that was trained from `start`; all are in `folder`."""

    folder: Path
    start: str

    @property
    def output(self) -> Path:
        return self.folder / f"from-{self.start}"


def _save(topology: ProcessTopology, folder: str, model_file: str) -> None:
    """A random T5 and a random BERT."""
    T5_KIND.save(f"{folder}/t5", T5(SHAPE, topology, seed=7), topology, SHAPE, SentencePieceTokenizer(model_file))
    vocabulary = WordPieceTokenizer("vocab.txt", tokens=VOCABULARY)
    MASKED_LM.save(f"{folder}/masked-lm", MaskedLanguageModel(BERT, topology, seed=7), topology, BERT, vocabulary)


def _finetune(run: Run, output: Path, *words: object, data: str = "reading.json") -> list[str]:
    """Steps enough to know the answers by heart; a BERT's positions end at 60 tokens."""
    settings = ["--pretrained-checkpoint", run.folder / run.start, "--train-data", run.folder / data]
    settings += ["--output-dir", output]
    settings += ["--save", output / "checkpoints", "--no-tensorboard", *LAYOUT, "--global-batch-size", 4]
    if run.start == "t5":
        settings += ["--reader-seq-length", 60]
    else:
        settings += ["--decoder-num-layers", 1]
    settings += ["--lr", 1e-2, "--lr-decay-style", "constant", "--micro-batch-size", 4, "--train-iters", 40]
    return command(*FINETUNE, *settings, *words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions with two passages each, and random models to start from."""
    folder = tmp_path_factory.mktemp("fusion")
    records = [
        {
            "question": f"where is the {thing}?",
            "answers": [city],
            "ctxs": [{"title": thing, "text": f"the {thing} stands in {other}."} for other in (city, "Denmark")],
        }
        for thing, city in zip(THINGS, CITIES, strict=True)
    ]
    (folder / "reading.json").write_text(json.dumps(records))
    run_on_ranks(_save, 1, str(folder), str(write_sentencepiece(folder / "tiny.model")))
    return folder


@pytest.fixture(scope="module", params=["t5", "masked-lm"])
def trained(folder: Path, request: pytest.FixtureRequest) -> Run:
    run = Run(folder, request.param)
    valid = ("--valid-data", folder / "reading.json", "--eval-interval", 20)
    log = succeed(_finetune(run, run.output, *valid, "--hidden-dropout", 0, "--attention-dropout", 0))
    assert "4 questions to learn from" in log
    assert ("'s encoder is taken, its layers 1 into the decoder as well" in log) == (run.start == "masked-lm")
    return run


def test_exact_match_rises_and_the_task_finds_the_same(trained: Run) -> None:
    lines = [json.loads(line) for line in (trained.output / "metrics.jsonl").read_text().splitlines()]
    curve = [line["valid_exact_match"] for line in lines if "valid_exact_match" in line]
    assert len(curve) == 3
    assert (curve[0], curve[-1]) == (0, 1)
    checkpoints, read = trained.output / "checkpoints", trained.output / "read"
    assert FUSION_READER.describe(checkpoints).layout is not None

    records = json.loads((trained.folder / "reading.json").read_text())
    wanting = [
        {**records[0], "answers": []},
        {**records[1], "answers": ["Rom"], "ctxs": []},
        {**records[2], "answers": ["", "the river " * 20]},
    ]
    (trained.folder / "more.json").write_text(json.dumps([*records, *wanting]))
    words = ["--reader", checkpoints, "--questions", trained.folder / "more.json", "--num-beams", 2]
    words += ["--tensor-model-parallel-size", 2, "--num-passages", 2, "--output-dir", read, "--encode-batch-size", 3]
    log = succeed(command(*EVALUATE, *words, "--score-attention", "feature", num_processes=2))
    metrics = json.loads((read / "metrics.json").read_text())
    assert metrics["exact_match"] == curve[-1] * 4 / 7
    assert metrics["score_attention"] == "feature"
    for fault in ("questions without answers", "questions without passages", "blank answers", "long answers"):
        assert f"more.json: 1 {fault}" in log
        assert metrics[f"num_{fault.replace(' ', '_')}"] == 1
    assert (metrics["reader"], metrics["num_beams"], metrics["max_answer_length"]) == ("fusion-reader", 2, 32)
    assert (metrics["reader_seq_length"], metrics["question_prefix"]) == (60, "question:")
    predictions = [json.loads(line) for line in (read / "predictions.jsonl").read_text().splitlines()]
    # with capital letters, which only the passages have where the vocabulary is lower-cased
    assert [prediction["prediction"] for prediction in predictions[:4]] == list(CITIES)
    assert len(predictions) == 7
    assert "<mark>" in (read / "examples.html").read_text()


def test_closed_book_it_learns_and_answers_from_questions_alone(folder: Path) -> None:
    asked = [f"where is the {thing}?\t['{city}']" for thing, city in zip(THINGS, CITIES, strict=True)]
    (folder / "train.qa.csv").write_text("\n".join(asked) + "\n")
    (folder / "test.qa.csv").write_text("\n".join([*asked, "where is the title?\t[' ']"]) + "\n")
    run, output = Run(folder, "t5"), folder / "closed-book"
    words = ("--closed-book", "--hidden-dropout", 0, "--attention-dropout", 0)
    log = succeed(_finetune(run, output, *words, data="train.qa.csv"))
    assert "4 questions to learn from, 0 passages" in log
    words = ("--reader", output / "checkpoints", "--questions", folder / "test.qa.csv", "--closed-book")
    log = succeed(command(*EVALUATE, *words, "--output-dir", output / "read"))
    metrics = json.loads((output / "read" / "metrics.json").read_text())
    assert (metrics["exact_match"], metrics["num_questions"], metrics["closed_book"]) == (4 / 5, 5, True)
    assert (metrics["num_blank_answers"], metrics["num_questions_without_answers"]) == (1, 1)
    assert metrics["num_questions_without_passages"] == 0
    page = (output / "read" / "examples.html").read_text()
    assert "<article" not in page
    assert page.count("No passages were read.") == 5


def test_resumed_it_goes_on_bit_for_bit(trained: Run) -> None:
    words = ("--train-iters", 12, "--save-interval", 5, "--log-interval", 1)
    whole, resumed = (trained.folder / f"{trained.start}-{name}" for name in ("whole", "resumed"))
    succeed(_finetune(trained, whole, *words))
    rewind(whole / "checkpoints", 5)
    assert "other settings" not in succeed(_finetune(trained, resumed, *words, "--load", whole / "checkpoints"))
    assert losses(resumed) == losses(whole)[5:]
    assert len(losses(resumed)) == 7


BAD_INPUT = {
    "no start": ([*FINETUNE, "--train-data", "{data}"], "nothing to start from"),
    "no room": (
        [*FINETUNE, "--train-data", "{data}", "--pretrained-checkpoint", "{t5}", "--reader-seq-length", "40"],
        "--reader-seq-length 40 leaves no room for passages",
    ),
    "positions": (
        [*FINETUNE, "--train-data", "{data}", "--pretrained-checkpoint", "{bert}", "--max-answer-length", "61"],
        "--max-answer-length 61 exceeds the encoder's 60 positions",
    ),
    "decoder": (
        [*FINETUNE, "--train-data", "{data}", "--pretrained-checkpoint", "{t5}", "--decoder-num-layers", "2"],
        "the decoder of {t5}/iter_0000000 has 1 layers",
    ),
    "limits": (
        [*EVALUATE, "--reader", "{t5}", "--questions", "{data}", "--min-answer-length", "40"],
        "--min-answer-length 40",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input(folder: Path, tmp_path: Path, case: str) -> None:
    words, message = BAD_INPUT[case]
    places = {"data": folder / "reading.json", "t5": folder / "t5", "bert": folder / "masked-lm"}
    refuse(
        command(*(word.format(**places) for word in words), "--output-dir", tmp_path / "out"), message.format(**places)
    )
