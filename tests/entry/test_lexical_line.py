"""BM25 as a user starts it: index, evaluate by words and by both, mine; on one and on two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from programs import command, succeed

from megatron_retrieval.applications.mining.mining import MineNegativesConfig, mine_negatives
from megatron_retrieval.applications.mining.rules import MiningRulesConfig
from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER, text_format_within
from megatron_retrieval.data.layouts.sequences import TextFormatConfig
from megatron_retrieval.errors import MismatchError
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.testing.embedded import embed
from megatron_retrieval.testing.spawn import run_on_ranks
from megatron_retrieval.testing.tiny import tiny_dual_encoder_config, write_tiny_evidence
from megatron_retrieval.tokenizers.wordpiece import WordPieceTokenizer

EVALUATE = ("tasks/main.py", "--task", "retriever-evaluate", "--topk", 1, 5, 20, "--device", "cpu")
TINY = tiny_dual_encoder_config()


def _embed(topology: ProcessTopology, folder: str) -> None:
    """A random encoder and the embeddings of the evidence."""
    root, text_format = Path(folder), text_format_within(TextFormatConfig(), TINY.encoder)
    model, vocabulary = DualEncoder(TINY, topology, seed=1), WordPieceTokenizer(root / "vocab.txt")
    DUAL_ENCODER.save(root / "encoder", model, topology, TINY, vocabulary, text_format)
    embed(topology, root / "evidence", root / "encoder", root / "embeddings")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evidence, its BM25 index, a random encoder with embeddings, and what one process finds by words."""
    folder = tmp_path_factory.mktemp("lexical")
    write_tiny_evidence(folder, num_distractors=60)
    records = json.loads((folder / "biencoder.json").read_text())
    for record in records:  # words of other passages, which become hard negatives
        record["question"] += " and which box of that corner"
    (folder / "questions.json").write_text(json.dumps(records))
    run_on_ranks(_embed, 1, str(folder))
    succeed(command("tools/build_bm25.py", "--evidence", folder / "evidence", "--output", folder / "bm25"))
    succeed(_evaluate(folder, "words"))
    return folder


def _evaluate(folder: Path, name: str, *words: object, num_processes: int = 1) -> list[str]:
    places = ["--evidence", folder / "evidence", "--bm25-index", folder / "bm25"]
    places += ["--questions", folder / "questions.json", "--output-dir", folder / name]
    return command(*EVALUATE, *places, *words, num_processes=num_processes)


def _metrics(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / "metrics.json").read_text())


def test_words_find_what_an_untrained_encoder_does_not(folder: Path) -> None:
    metrics = _metrics(folder, "words")
    assert metrics["recall@1"] == 1.0  # no other passage has the question's key
    assert (metrics["bm25_k1"], metrics["stemmer"], metrics["index_titles"]) == (0.9, "porter", True)
    assert "encoder_fingerprint" not in metrics
    assert "fusion" not in metrics


def test_data_sets_of_beir_and_their_mean(folder: Path, tmp_path: Path) -> None:
    """Questions without answers, with ids and graded judgements; the second data set has half of them."""
    records = json.loads((folder / "questions.json").read_text())
    queries = [{"_id": f"<Q:{number}>", "text": record["question"]} for number, record in enumerate(records)]
    relevant = [record["positive_ctxs"][0]["passage_id"] for record in records]
    rows = [f"<Q:{number}>\t{name}\t1" for number, name in enumerate(relevant)]
    for name, missing in (("tiny", "<Q:0>\tnowhere\t1"), ("half", "<Q:1>\tnowhere\t1")):
        (tmp_path / name / "qrels").mkdir(parents=True)
        (tmp_path / name / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
        judged = rows if name == "tiny" else rows[:2]
        qrels = "\n".join(["query-id\tcorpus-id\tscore", *judged, missing])
        (tmp_path / name / "qrels" / "test.tsv").write_text(qrels)
        for part in ("evidence", "bm25"):
            (tmp_path / name / part).symlink_to(folder / part)
    places = ["--datasets", tmp_path / "tiny", tmp_path / "half", "--output-dir", tmp_path / "out", "--topk", 1, 5]
    log = succeed(command("tasks/main.py", "--task", "beir-evaluate", *places, "--device", "cpu"))
    assert "1 of 23 relevant passages are not in the evidence" in " ".join(log.split())
    out = tmp_path / "out"
    metrics, half, both = _metrics(out, "tiny"), _metrics(out, "half"), _metrics(tmp_path, "out")
    assert not any("answer" in key and "recall" in key for key in metrics)
    assert (metrics["mrr@10"], metrics["recall@1"], metrics["num_missing_passages"]) == (1.0, 1 - 0.5 / 22, 1)
    assert (half["num_judged_questions"], half["recall@1"]) == (2, 0.75)
    assert both["recall@1"] == (metrics["recall@1"] + half["recall@1"]) / 2
    topics = [line.split()[0] for line in (out / "tiny" / "run.trec").read_text().splitlines()]
    assert set(topics) == {query["_id"] for query in queries}
    beir, mteb = (json.loads((out / "tiny" / f"{name}_results.json").read_text()) for name in ("beir", "mteb"))
    assert beir["ndcg"]["NDCG@10"] == mteb["scores"]["test"][0]["main_score"] == round(metrics["ndcg@10"], 5)
    assert mteb["task_name"] == "tiny"


@pytest.mark.parametrize(("num_processes", "tensor_parallel"), [(2, 1), (2, 2)], ids=["DP 2", "TP 2"])
def test_both_searches_at_any_layout(folder: Path, num_processes: int, tensor_parallel: int) -> None:
    both = ["--embeddings", folder / "embeddings", "--retriever", folder / "encoder", "--fusion-depth", "30"]
    if not (folder / "both").exists():
        succeed(_evaluate(folder, "both", *both))
    name = f"both-tp{tensor_parallel}"
    layout = ["--tensor-model-parallel-size", tensor_parallel]
    succeed(_evaluate(folder, name, *both, *layout, num_processes=num_processes))
    names = ("metrics.json", "ranks.jsonl") + (("results.json", "run.trec") if tensor_parallel == 1 else ())
    for file in names:  # under tensor parallelism sums round otherwise
        assert (folder / name / file).read_text() == (folder / "both" / file).read_text()
    metrics = _metrics(folder, name)
    assert (metrics["fusion"], metrics["dense_weight"], metrics["fusion_depth"]) == ("weighted", 0.5, 30)
    assert metrics["encoder_fingerprint"]


def test_words_on_two_processes(folder: Path) -> None:
    succeed(_evaluate(folder, "words2", num_processes=2))
    for file in ("metrics.json", "ranks.jsonl", "results.json", "run.trec"):
        assert (folder / "words2" / file).read_text() == (folder / "words" / file).read_text()


def test_mining_with_bm25_is_mining_from_its_results(folder: Path) -> None:
    places = ["--bm25-index", folder / "bm25", "--evidence", folder / "evidence", "--output", folder / "direct.json"]
    rules = ["--num-mined", 3, "--max-rank", 20]
    log = succeed(command("tools/mine_negatives.py", "--train-data", folder / "questions.json", *places, *rules))
    counts = "66 mined hard negatives; 0 of them without any hard negative; 0 dropped without a positive"
    assert counts in " ".join(log.split())
    settings = MineNegativesConfig(
        train_data=folder / "questions.json",
        results=folder / "words" / "results.json",
        output=folder / "from-results.json",
        rules=MiningRulesConfig(num_mined=3, max_rank=20),
    )
    mine_negatives(settings)
    direct, from_results = (json.loads((folder / name).read_text()) for name in ("direct.json", "from-results.json"))
    for record in (*direct, *from_results):  # the results' scores were written in decimals
        for context in record["hard_negative_ctxs"]:
            context["score"] = round(context["score"], 4)
    assert direct == from_results


def test_mining_in_several_processes(folder: Path) -> None:
    def mine(workers: int) -> str:
        settings = MineNegativesConfig(
            train_data=folder / "questions.json",
            bm25_index=folder / "bm25",
            evidence=folder / "evidence",
            output=folder / f"mined-{workers}.json",
            rules=MiningRulesConfig(num_mined=2),
            workers=workers,
        )
        mine_negatives(settings)
        return settings.output.read_text()

    assert mine(2) == mine(1)


def test_evidence_that_is_not_the_indexs(folder: Path, tmp_path: Path) -> None:
    other = write_tiny_evidence(tmp_path, num_distractors=3)
    settings = MineNegativesConfig(
        train_data=folder / "questions.json",
        bm25_index=folder / "bm25",
        evidence=other,
        output=tmp_path / "mined.json",
    )
    with pytest.raises(MismatchError, match=r"index it with megatron-retrieval build bm25"):
        mine_negatives(settings)
    assert not (tmp_path / "mined.json").exists()
