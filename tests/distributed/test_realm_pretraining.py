"""REALM as its user starts it: the same at any layout, resumed bit for bit, with every kind of masking."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.masked_lm import MASKED_LM
from megatron_retrieval.config.parser import parse_config
from megatron_retrieval.data.examples.masked_texts import MaskedTexts, MaskedTextsConfig
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.recipes.end_to_end.realm import RealmPretrainingConfig
from megatron_retrieval.testing.kinds_of_work import MASKED
from megatron_retrieval.testing.runs import REALM, curve, rewind, saved_weights, train
from megatron_retrieval.testing.tiny_starts import write_spans, write_starts

STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_starts(tmp_path_factory.mktemp("realm"))
    write_spans(folder)
    train(REALM, _words(folder, folder / "run"))
    return folder


def _words(folder: Path, output: Path, *more: object) -> list[str]:
    starts = {"retriever": "retriever", "reader": "retriever", "evidence": "evidence", "spans": "spans"}
    words: list[object] = [word for flag, name in starts.items() for word in (f"--{flag}", folder / name)]
    words += ["--output-dir", output, "--save", output / "checkpoints", "--train-iters", STEPS, "--save-interval", 4]
    words += [*MASKED, "--lr", "1e-3", "--lr-warmup-fraction", 0, "--no-tensorboard", "--log-interval", 1, *more]
    return [str(word) for word in words]


@pytest.mark.parametrize(("num_ranks", "tp_size"), [(2, 1), (2, 2)])
def test_any_layout_has_the_same_losses(folder: Path, tmp_path: Path, num_ranks: int, tp_size: int) -> None:
    layout = ("--tensor-model-parallel-size", tp_size)
    train(REALM, _words(folder, tmp_path, *layout), num_ranks, tp_size)
    assert len(curve(tmp_path, "utility_below_0")) == STEPS
    assert curve(tmp_path, "valid_retrieval_utility")
    for figure in ("loss", "utility_below_0", "null_prior", "valid_retrieval_utility"):
        assert curve(tmp_path, figure) == pytest.approx(curve(folder / "run", figure), rel=1e-3, abs=1e-6)


def test_resumed_it_goes_on_bit_for_bit_and_its_parts_are_checkpoints(folder: Path, tmp_path: Path) -> None:
    whole = folder / "run" / "checkpoints"
    before = saved_weights(whole / f"iter_{STEPS:07d}")
    rewind(whole, 4)
    train(REALM, _words(folder, folder / "run", "--load", whole))
    after = saved_weights(whole / f"iter_{STEPS:07d}")
    assert all(bool((after[name] == weight).all()) for name, weight in before.items())
    assert len(curve(folder / "run")) == STEPS
    assert MASKED_LM.describe(whole / "reader").shape.hidden_size == 32
    assert DUAL_ENCODER.describe(whole / "retriever").layout.query_seq_length == 12


@pytest.mark.parametrize("masking", ["salient", "spans", "tokens"])
def test_what_is_hidden_stands_in_the_target_and_its_holders_are_no_candidates(folder: Path, masking: str) -> None:
    """Filling the masks restores the sentence; the same draws come again; no more than the most tokens are hidden."""
    evidence = EvidenceStore(folder / "evidence")
    vocabulary, masked = evidence.vocabulary, []
    for most in (10, 10, 1):
        config = MaskedTextsConfig(spans=folder / "spans", masking=masking, mask_prob=0.4, max_masked_tokens=most)  # type: ignore[arg-type]
        texts = MaskedTexts(
            config,
            evidence,
            retriever=vocabulary,
            reader=vocabulary,
            text_format=TextFormatConfig(),
            question_seq_length=20,
            seed=3,
        )
        batch = texts.batch(range(12), 1, 24)
        masked.append([batch.reader_questions[row].tolist() for row in range(12)])
        assert (batch.groups is None) == (masking != "salient")
        for row, question in enumerate(masked[-1]):
            hidden = iter(batch.targets[row].tolist())
            assert 0 < len(batch.targets[row]) <= most
            filled = [next(hidden) if token == vocabulary.special.mask else token for token in question]
            assert next(hidden, None) is None
            wanted = vocabulary.encode([texts.store.sentence(row)[0]])[0]
            assert filled == wanted or most == 1  # where the next sentence takes its place
            excluded = set(batch.excluded_rows[row].tolist())
            holders = {at for at in range(len(evidence)) if evidence.token_columns([at])[1][0].tolist() == filled}
            assert holders
            assert holders <= excluded
            query = batch.retriever_queries.ids[row, 1 : len(question) + 1].tolist()
            assert query == question
    assert masked[0] == masked[1]
    assert masking == "salient" or masked[0] != masked[2]


def test_its_reader_is_a_masked_language_model(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--reader-kind extractive: the reader is a masked language model"):
        parse_config(RealmPretrainingConfig, _words(folder, folder / "none", "--reader-kind", "extractive"))
