"""RETRO's pretraining beside a frozen language model: what checkpoints hold, resuming, and the evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import command, succeed

from megatron_retrieval.applications import reader_evaluation, retro_evaluation
from megatron_retrieval.applications.dry_run import dry_run
from megatron_retrieval.applications.plan.units import size
from megatron_retrieval.applications.reader_evaluation import QaEvaluateConfig
from megatron_retrieval.applications.retro_evaluation import RetroEvaluateConfig
from megatron_retrieval.checkpoint.kinds.causal_lm import CAUSAL_LM
from megatron_retrieval.checkpoint.kinds.retro import RETRO, RETRO_READER
from megatron_retrieval.checkpoint.store.folders import resolve_checkpoint
from megatron_retrieval.checkpoint.store.manifest import read_manifest
from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.data.examples.retro import RetroDataset
from megatron_retrieval.data.examples.retro_texts import RetroTexts
from megatron_retrieval.data.stores.chunk_selection import ChunkSelectionConfig
from megatron_retrieval.data.stores.chunks import ChunkStore
from megatron_retrieval.data.stores.neighbors import NeighborStore
from megatron_retrieval.errors import CheckpointError, ConfigError, MismatchError
from megatron_retrieval.models.causal_lm import CausalConfig, CausalLM
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.recipes import retro_pretraining
from megatron_retrieval.testing import runs
from megatron_retrieval.testing.tiny_retro import write_tiny_chunks, write_tiny_neighbors
from megatron_retrieval.tokenizers.byte_bpe import ByteBpeTokenizer
from megatron_retrieval.training.trainer import Trainer, reduce_metrics

M = 4
SHAPE = CausalConfig(
    num_layers=4,
    hidden_size=32,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=48,
    max_position_embeddings=64,
    vocab_size=300,
    init_method_std=0.1,
)
WORDS = (
    "--seq-length 16 --global-batch-size 4 --micro-batch-size 3 --train-iters 6 --save-interval 3 --lr 1e-2 "
    "--retro-encoder-hidden-dropout 0 --retro-encoder-attention-dropout 0 --retro-encoder-num-layers 1 "
    "--no-tensorboard --log-interval 1 --eval-interval 3"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chunks, neighbours, a base, and a run of six steps with what it saved after three."""
    folder = tmp_path_factory.mktemp("retro")
    random = np.random.default_rng(1)
    documents = [random.integers(2, 300, random.integers(1, 40)).tolist() for _ in range(40)]
    chunks = write_tiny_chunks(folder / "chunks", documents, M)
    rows = random.integers(0, len(chunks), (len(chunks), 3))
    write_tiny_neighbors(folder / "neighbors", chunks, rows, ChunkSelectionConfig(valid_fraction=0.3))
    with process_topology(ParallelConfig(device="cpu")) as topology:
        vocabulary = chunks.vocabulary
        assert isinstance(vocabulary, ByteBpeTokenizer)
        CAUSAL_LM.save(folder / "base", CausalLM(SHAPE, topology, seed=2), topology, SHAPE, vocabulary)
    _fit(folder, "whole", "--save", str(folder / "saved"))
    return folder


def _words(folder: Path, name: str, *flags: str) -> list[str]:
    inputs = ["--retro-chunks", str(folder / "chunks"), "--retro-neighbors", str(folder / "neighbors")]
    start = ["--pretrained-checkpoint", str(folder / "base"), "--output-dir", str(folder / name)]
    return [*WORDS, *inputs, *start, *flags]


def _fit(folder: Path, name: str, *flags: str) -> None:
    with process_topology(ParallelConfig(device="cpu")) as topology:
        _built(_words(folder, name, *flags), topology).fit()


def _built(words: list[str], topology: ProcessTopology) -> Trainer:
    return retro_pretraining.build(parse_config(retro_pretraining.RetroPretrainingConfig, words), topology)


def test_a_checkpoint_holds_what_was_trained_and_names_the_rest(folder: Path) -> None:
    saved = folder / "saved" / "iter_0000006"
    manifest, stored = read_manifest(saved), runs.saved_weights(saved)
    assert manifest.base is not None
    assert manifest.base.fingerprint == CAUSAL_LM.describe(folder / "base").fingerprint
    with process_topology(ParallelConfig(device="cpu")) as topology:
        model = RETRO.load(saved, topology).model
        base = CAUSAL_LM.load(folder / "base", topology).model
    own = model.base_names()
    assert stored.keys() == {name for name, _ in model.named_parameters()} - own
    for name, parameter in base.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name]), name
    before = runs.saved_weights(folder / "saved" / "iter_0000003")
    assert not any(torch.equal(stored[name], before[name]) for name in stored)


def test_a_resumed_run_is_the_same_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    runs.rewind(folder / "saved", 3)
    _fit(folder, "again", "--load", str(folder / "saved"), "--save", str(tmp_path / "saved"))
    runs.train(runs.RETRO, _words(folder, "two", "--load", str(folder / "saved")), 2, 2)
    runs.rewind(folder / "saved", 6)
    expected = runs.curve(folder / "whole")
    assert runs.curve(folder / "again") == expected[3:]
    assert runs.curve(folder / "two") == pytest.approx(expected[3:], rel=1e-4)
    assert runs.curve(folder / "again", "valid_loss")[-1] == runs.curve(folder / "whole", "valid_loss")[-1]
    weights, other = (runs.saved_weights(path / "iter_0000006") for path in (folder / "saved", tmp_path / "saved"))
    assert all(torch.equal(weights[name], other[name]) for name in weights | other)


def test_from_scratch_with_dropped_and_swapped_neighbours(folder: Path) -> None:
    """All weights are trained, and each setting is another run."""
    shape = (
        "--num-layers 2 --hidden-size 16 --num-attention-heads 2 --ffn-hidden-size 24 --max-position-embeddings 64 "
        "--retro-cca-init normal --hidden-dropout 0 --train-iters 2"
    ).split()
    start = ["--pretrained-checkpoint", str(folder / "base")]
    losses = set()
    for flags in ([], ["--retro-drop-neighbors", "0.5"], ["--retro-arm", "swapped"], ["--no-retro-add-retriever"]):
        words = [word for word in _words(folder, "scratch", *shape, *flags) if word not in start]
        with process_topology(ParallelConfig(device="cpu")) as topology:
            trainer = _built(words, topology)
            assert all(p.requires_grad for p in trainer.model.module.parameters())
            trainer.fit()
        losses.add(tuple(runs.curve(folder / "scratch")[-2:]))
    assert len(losses) == 4


def test_gates_open_at_a_rate_of_their_own(folder: Path) -> None:
    """The first step of Adam moves a weight by its learning rate, whatever the gradient; where closed gates let none
    through, that is 0."""
    flags = "--retro-cca-init self-attention --lr 1e-3 --lr-decay-style constant --lr-warmup-fraction 0 --train-iters 1"
    words = _words(folder, "gates", *flags.split(), "--retro-gate-lr", "0.05")
    with process_topology(ParallelConfig(device="cpu")) as topology:
        trainer = _built(words, topology)
        before = {name: p.detach().clone() for name, p in trainer.model.module.named_parameters()}
        trainer.fit()
        for name, parameter in trainer.model.module.named_parameters():
            moved = float((parameter - before[name]).abs().max())
            is_first_gate = name.startswith("stack.decoder.") and name.endswith(".gate")
            assert moved == pytest.approx(0.05 if is_first_gate else 0.0, abs=1e-4), name
    assert any(name.endswith("decoder.layers.1.cross_attention.gate") for name in before)


def test_the_slope_of_a_gate_is_what_opening_it_gains(folder: Path, tmp_path: Path) -> None:
    """As benchmarks/retro_gates.py measures it, against the losses with the gate a little open to either side."""
    inputs = ["--retro-chunks", folder / "chunks", "--retro-neighbors", folder / "neighbors", "--seq-length", 16]
    inputs += ["--pretrained-checkpoint", folder / "base", "--retro-encoder-num-layers", 1, "--num-sequences", 1]
    succeed(command("benchmarks/retro_gates.py", *inputs, "--output", tmp_path / "slopes.json"))
    (slopes,) = json.loads((tmp_path / "slopes.json").read_text())["on"]
    assert list(slopes) == ["1", "2", "3", "4"]
    flags = "--retro-cca-init self-attention --seed 1 --train-iters 1 --retro-cross-attention-layers 1 2 3 4"
    with process_topology(ParallelConfig(device="cpu")) as topology:
        trainer = _built(_words(folder, "open", *flags.split()), topology)
        model, neighbors = trainer.model.module, NeighborStore(str(folder / "neighbors"), ChunkStore(folder / "chunks"))
        sequences = RetroDataset(neighbors, seq_length=16, num_neighbors=2, seed=1)
        batch = RetroTexts(sequences, drop=0.0, seed=1).batch([0], 0, 0)
        for layer, slope in slopes.items():
            gate, losses = model.get_parameter(f"stack.decoder.layers.{int(layer) - 1}.cross_attention.gate"), []
            for opening in (0.02, -0.02):
                gate.data.fill_(opening)
                losses.append(float(reduce_metrics(trainer.step.evaluate(batch), topology)["loss"]))
            gate.data.fill_(0.0)
            assert slope == pytest.approx((losses[0] - losses[1]) / 0.04, rel=0.02, abs=2e-5), layer


def test_evaluation_in_all_arms(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without neighbours it is the base, to the last digit that is written."""
    words = ["--retro-chunks", str(folder / "chunks"), "--retro-neighbors", str(folder / "neighbors")]
    words += ["--seq-length", "16", "--output-dir", str(folder / "evaluation"), "--num-examples", "6"]
    words += ["--retro-num-neighbors", "2", "1", "--checkpoint", str(folder / "saved")]
    config = parse_config(RetroEvaluateConfig, words)
    with process_topology(ParallelConfig(device="cpu")) as topology:
        retro_evaluation.main(config, topology)
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text())
    lines = [json.loads(line) for line in (folder / "evaluation" / "chunks.jsonl").read_text().splitlines()]
    assert list(metrics["bits_per_byte"]) == ["on", "off", "swapped", "random", "on, k 1"]
    assert len({parts["all"]["mean"] for parts in metrics["bits_per_byte"].values()}) == 5
    assert metrics["num_chunks"] == len(lines)
    assert sum(line["num_bytes"] for line in lines) == metrics["num_bytes"] == metrics["num_tokens"]
    bits = sum(line["nats"]["on"] for line in lines) / np.log(2) / metrics["num_bytes"]
    assert metrics["bits_per_byte"]["on"]["all"]["mean"] == pytest.approx(bits, rel=1e-4)
    difference = metrics["differences"]["on - off"]["all"]
    means = [metrics["bits_per_byte"][name]["all"]["mean"] for name in ("on", "off")]
    assert difference["mean"] == pytest.approx(means[0] - means[1])
    assert difference["better"] in ("shown", "not shown", "contradicted")
    page = (folder / "evaluation" / "examples.html").read_text()
    assert page.count("<h2>") == 6
    assert "color-mix" in page
    assert "on - off" in capsys.readouterr().out


def test_manifests_from_before_a_setting_open(folder: Path, tmp_path: Path) -> None:
    """Such as those from before rotary positions could be scaled; what has always been there may not be missing."""
    old = tmp_path / "old"
    shutil.copytree(resolve_checkpoint(folder / "base"), old)
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["config"]["rope-scaling-factor"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    assert CAUSAL_LM.describe(old).shape == SHAPE
    del manifest["config"]["rotary-base"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="'rotary-base' is missing"):
        CAUSAL_LM.describe(old)


def test_what_a_dry_run_says_of_it(folder: Path) -> None:
    """What is frozen has no gradients and moments; a checkpoint that refers to it holds both."""
    found = dry_run(runs.RETRO.config, _words(folder, "dry"), [], 1).estimate
    trained = sum(values.numel() for values in runs.saved_weights(folder / "saved" / "iter_0000006").values())
    frozen = sum(values.numel() for values in runs.saved_weights(resolve_checkpoint(folder / "base")).values())
    assert found[0] == f"memory: {trained / 1e6:.1f} million weights, {frozen / 1e6:.1f} million frozen ones"
    assert f"{size(16 * trained + 4 * frozen)} with gradients and moments, and " in found[1]
    whole = dry_run(runs.RETRO.config, _words(folder, "dry", "--retro-train-base"), [], 1).estimate
    assert f"{size(16 * (trained + frozen))} with gradients and moments" in whole[1]
    (folder / "questions.json").touch()
    words = ["--pretrained-checkpoint", str(folder / "saved"), "--train-data", str(folder / "questions.json")]
    reader = dry_run(runs.RETRO_READER.config, [*words, "--output-dir", "x"], [], 1).estimate
    assert f"{size(16 * (trained + frozen))} with gradients and moments" in reader[1]


def test_a_reader_is_made_of_it(folder: Path) -> None:
    """With a frozen base or without; it has all weights, answers questions, and refuses more than a chunk of answer."""
    passage = {"id": "1", "title": "a title", "text": "a text with an answer", "score": "1"}
    records = [{"question": f"question {n}?", "answers": ["an answer"], "ctxs": [passage] * (n % 3)} for n in range(6)]
    data, saved, output = folder / "questions.json", folder / "reader", folder / "reading"
    data.write_text(json.dumps(records))
    words = ["--train-data", str(data), "--valid-data", str(data), "--pretrained-checkpoint", str(folder / "saved")]
    words += "--num-passages 2 --max-answer-length 4 --global-batch-size 4 --micro-batch-size 2 --train-iters 2".split()
    words += ["--no-tensorboard", "--save", str(saved), "--output-dir", str(folder / "finetuned"), "--lr", "1e-2"]
    with process_topology(ParallelConfig(device="cpu")) as topology:
        runs.RETRO_READER.build(parse_config(runs.RETRO_READER.config, words), topology).fit()
        names = runs.saved_weights(saved / "iter_0000002").keys()
        model = RETRO_READER.load(saved, topology).model
        assert names == {name for name, _ in model.named_parameters()}
        assert model.config.retro_encoder_hidden_dropout == 0
        base = dict(CAUSAL_LM.load(folder / "base", topology).model.named_parameters())
        assert not any(
            torch.equal(parameter, base[name]) for name, parameter in model.named_parameters() if name in base
        )
        for reader in (saved, folder / "saved"):
            flags = [
                "--reader",
                str(reader),
                "--questions",
                str(data),
                "--num-passages",
                "2",
                "--max-answer-length",
                "4",
            ]
            reader_evaluation.main(parse_config(QaEvaluateConfig, [*flags, "--output-dir", str(output)]), topology)
            metrics = json.loads((output / "metrics.json").read_text())
            assert metrics["num_questions"] == len(records)
            assert {"exact_match", "f1"} <= metrics.keys()
        with pytest.raises(ConfigError, match=r"--max-answer-length 5: .* chunks of 4 tokens"):
            reader_evaluation.main(parse_config(QaEvaluateConfig, [*flags[:-1], "5", "--output-dir", "x"]), topology)


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--no-retro-add-retriever"], ConfigError, "learns nothing"),
        (["--lora-rank", "2"], ConfigError, "no adapters"),
        (["--retro-gate-lr", "0.1"], ConfigError, "has gates"),
        (["--retro-cca-init", "self-attention", "--retro-gate-lr", "0.1", "--lr", "0"], ConfigError, "above 0"),
        (["--retro-chunk-length", "8"], MismatchError, "chunks of 4 tokens, the model of 8"),
        (["--retro-cross-attention-layers", "9"], ConfigError, "layers are 1 to 4"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, flags: list[str], error: type[Exception], message: str) -> None:
    words = _words(folder, "refused", *flags)
    with process_topology(ParallelConfig(device="cpu")) as topology, pytest.raises(error, match=message):
        _built(words, topology)
