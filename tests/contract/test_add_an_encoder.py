"""An encoder family of one file outside the package: imported, trained, embedded, evaluated and exported by the real
commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from programs import command, losses, refuse, run, succeed
from safetensors.torch import load_file, save_file

from megatron_retrieval.testing.runs import saved_weights
from megatron_retrieval.testing.tiny import write_tiny_evidence

EXTENSION = ("--extensions", Path(__file__).parent / "extensions" / "mine_encoder.py")
WIDTH, STEPS = 16, 3
SETTINGS = (
    "--no-tensorboard --log-interval 1 --global-batch-size 8 --lr 1e-2 --lr-warmup-fraction 0 --save-interval 5 "
    "--query-seq-length 16 --retriever-seq-length 300"
).split()


def _write_huggingface(folder: Path, vocab: Path) -> None:
    """A random encoder as its own project would save it."""
    folder.mkdir()
    vocab_size = len(vocab.read_text().splitlines())
    settings = {"model_type": "mine", "width": WIDTH, "vocab_size": vocab_size, "std": 0.2, "mean": 0.5}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "vocab.txt").write_text(vocab.read_text())
    shapes = {"embed.weight": (vocab_size, WIDTH), "out.weight": (WIDTH, WIDTH), "out.bias": (WIDTH,)}
    generator = torch.Generator().manual_seed(1)
    save_file(
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, folder / "model.safetensors"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evidence and training data, and the imported encoder in `checkpoint`."""
    folder = tmp_path_factory.mktemp("encoder")
    write_tiny_evidence(folder, num_distractors=100)
    _write_huggingface(folder / "hf", folder / "vocab.txt")
    words = ("--format", "mine", "--input", folder / "hf", "--output", folder / "checkpoint", "--separate-towers")
    succeed(command("tools/import_checkpoint.py", *EXTENSION, *words))
    return folder


def _finetune(folder: Path, name: str, *words: object, num_processes: int = 1) -> list[str]:
    job = ("tasks/main.py", "--task", "retriever-finetune", *EXTENSION, *SETTINGS, "--train-iters", STEPS)
    places = ("--train-data", folder / "biencoder.json", "--output-dir", folder / name, "--save", folder / name / "ck")
    return command(*job, *places, *words, num_processes=num_processes)


def test_it_is_trained_embedded_and_evaluated_on_any_number_of_ranks(folder: Path) -> None:
    start = ("--pretrained-checkpoint", folder / "checkpoint")
    found = []
    for num_processes, name in ((1, "one"), (2, "two")):
        succeed(_finetune(folder, name, *start, num_processes=num_processes))
        inputs = (
            "--evidence",
            folder / "evidence",
            "--retriever",
            folder / name / "ck",
            "--embedding-dtype",
            "float32",
        )
        embed = ("tools/embed_evidence.py", *EXTENSION, *inputs, "--output", folder / name / "embeddings")
        succeed(command(*embed, num_processes=num_processes))
        asked = ("--questions", folder / "biencoder.json", "--output-dir", folder / name / "run", "--topk", 1, 5)
        task = ("tasks/main.py", "--task", "retriever-evaluate", *EXTENSION, *inputs[:4], *asked)
        evaluate = command(*task, "--embeddings", folder / name / "embeddings", num_processes=num_processes)
        succeed(evaluate)
        found.append(json.loads((folder / name / "run" / "metrics.json").read_text())["recall@5"])
    one, two = (dict(losses(folder / name)) for name in ("one", "two"))
    assert len(one) == STEPS
    assert one[STEPS] < one[1]
    assert one == pytest.approx(two, rel=1e-4)
    assert found[0] == found[1] > 0.1  # by chance 0.04


def test_its_settings_are_flags_and_keys(folder: Path) -> None:
    start = ("--pretrained-checkpoint", folder / "checkpoint")
    succeed(_finetune(folder, "flags", *start, "--mean-weight", "0.25", "--pooling", "mean"))
    config = folder / "flags" / "config.yaml"
    settings = yaml.safe_load(config.read_text())
    assert (settings["mean-weight"], settings["hidden-size"], settings["pooling"]) == (0.25, WIDTH, "mean")
    assert "num-layers" not in settings
    again = ("tasks/main.py", "--task", "retriever-finetune", "--config", config)
    succeed(command(*again, "--output-dir", folder / "again", "--save", folder / "again" / "ck"))
    assert losses(folder / "again") == losses(folder / "flags")
    manifest = json.loads((folder / "again" / "ck" / f"iter_{STEPS:07d}" / "manifest.json").read_text())
    assert manifest["config"]["encoder-family"] == "mine"
    wrong = run(_finetune(folder, "wrong", *start, "--num-layers", "2"))
    assert wrong.returncode == 2
    assert "--num-layers" in wrong.stderr


def test_export_gives_back_what_was_imported(folder: Path) -> None:
    words = ("--format", "mine", "--checkpoint", folder / "checkpoint", "--output", folder / "out")
    succeed(command("tools/export_checkpoint.py", *EXTENSION, *words))
    before = load_file(folder / "hf" / "model.safetensors")
    for tower in ("question_encoder", "ctx_encoder"):
        after = load_file(folder / "out" / tower / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    weights = saved_weights(folder / "checkpoint" / "iter_0000000")
    assert torch.equal(weights["towers.passage.bert.words.weight"], before["embed.weight"])


def test_a_checkpoint_names_the_family_that_is_missing(folder: Path) -> None:
    words = ("--evidence", folder / "evidence", "--retriever", folder / "checkpoint", "--output", folder / "none")
    message = "unknown family of encoders 'mine'; choose one of bert, bert-unigram, mpnet"
    refuse(command("tools/embed_evidence.py", *words), message)
