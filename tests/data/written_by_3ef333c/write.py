"""Writes this folder anew: with the code of commit 3ef333c, and no other.

    git worktree add ../old 3ef333c
    cp tests/data/written_by_3ef333c/write.py ../old
    cd ../old && PYTHONPATH=. OMP_NUM_THREADS=1 python write.py FOLDER

FOLDER must not exist. Every artefact is written by the command that users give; `expected.json` holds further commands,
which only read the artefacts, and what they left.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sentencepiece import SentencePieceTrainer

OLD = Path(__file__).parent.resolve()
KEYS = [f"key{number}" for number in range(10)]
WORDS = ["where", "is", "the", "box", "of", "stands", "in", "room", "corner", "title", "question", "context", ":", "."]

TRAIN = "--global-batch-size 4 --log-interval 1 --no-tensorboard --hidden-dropout 0.1 --seed 7 --lr-warmup-fraction 0"
TRAIN += " --lr-decay-style constant --lr 1e-2"
#: of what is compared: which values are dropped is no matter of files, and may change with the version
DROPOUT, NO_DROPOUT = "--hidden-dropout 0.1", "--hidden-dropout 0 --attention-dropout 0"
BERT = "--num-layers 1 --hidden-size 4 --num-attention-heads 2 --ffn-hidden-size 8 --max-position-embeddings 32"
BERT += " --init-method-std 0.5"
T5 = "--num-layers 1 --hidden-size 4 --num-attention-heads 2 --ffn-hidden-size 8 --gated-linear-unit"
T5 += " --relative-attention-num-buckets 8 --relative-attention-max-distance 16"
TEXTS = "--query-seq-length 12 --retriever-seq-length 24"
READING = "--question-seq-length 8 --reader-seq-length 32 --num-passages 2 --train-data text/reading.json"
FUSION = f"{READING} --question-prefix where --title-prefix title --passage-prefix of --max-answer-length 4"
END_TO_END = f"""tasks/main.py --task end-to-end-finetune {TRAIN} --retriever dual-encoder-shared --reader fusion-bert
    --evidence evidence --train-data text/questions.json --num-passages 3 --max-answer-length 4
    --objective joint-topk --micro-batch-size 2 --embedding-dtype float16 --index-refresh-interval 2"""
SEPARATE = f"""tasks/main.py --task retriever-finetune {TRAIN} --pretrained-checkpoint masked-lm
    --train-data text/questions.json {TEXTS} --max-position-embeddings 32"""
ASK = "tasks/main.py --task retriever-evaluate --evidence evidence --questions text/questions.json --topk 1 4"
READ = "tasks/main.py --task qa-evaluate --questions text/reading.json --num-passages 2 --max-answer-length 4"
WRITE = f"{READ} --num-beams 2 --min-answer-length 3"

#: checkpoints from which a run is resumed; of the others the optimizer's file is removed
RESUMED = ("dual-encoder-separate", "end-to-end")
#: name of the run -> its command; {out} is a folder that is thrown away
ARTEFACTS = {
    "evidence": "tools/build_evidence.py --input text/passages.jsonl --output evidence --vocab-file text/vocab.txt",
    "corpus-wordpiece": """tools/build_corpus.py --input text/corpus.jsonl --output corpus-wordpiece
        --vocab-file text/vocab.txt""",
    "corpus-sentencepiece": """tools/build_corpus.py --input text/corpus.jsonl --output corpus-sentencepiece
        --tokenizer-model text/spiece.model""",
    "masked-lm": f"""pretrain_bert.py {TRAIN} {BERT} --data-path corpus-wordpiece --seq-length 32 --train-iters 2
        --save masked-lm --output-dir {{out}}""",
    "dual-encoder-shared": f"""pretrain_ict.py {TRAIN} {BERT} {TEXTS} --data-path corpus-wordpiece --train-iters 2
        --biencoder-shared-query-context-model --save dual-encoder-shared --output-dir {{out}}""",
    "dual-encoder-separate": f"{SEPARATE} --train-iters 2 --save dual-encoder-separate --output-dir {{out}}",
    "extractive": f"""tasks/main.py --task reader-finetune {TRAIN} {READING} --num-train-passages 2
        --pretrained-checkpoint masked-lm --train-iters 2 --save extractive --output-dir {{out}}""",
    "fusion-bert": f"""tasks/main.py --task fusion-finetune {TRAIN} {FUSION} --pretrained-checkpoint masked-lm
        --train-iters 2 --save fusion-bert --output-dir {{out}}""",
    "t5": f"""pretrain_t5.py {TRAIN} {T5} --data-path corpus-sentencepiece --seq-length 32 --train-iters 2 --save t5
        --output-dir {{out}}""",
    "fusion-t5": f"""tasks/main.py --task fusion-finetune {TRAIN} {FUSION} --pretrained-checkpoint t5 --train-iters 2
        --save fusion-t5 --output-dir {{out}}""",
    "embeddings": """tools/embed_evidence.py --evidence evidence --load dual-encoder-separate --output embeddings
        --device cpu""",
    "index": "tools/build_index.py --embeddings embeddings --output index --index-factory IVF2,SQ8",
    "bm25": "tools/build_bm25.py --evidence evidence --output bm25",
    "end-to-end": f"""{END_TO_END} --train-iters 4 --save end-to-end --index-dir end-to-end-index
        --output-dir {{out}}""",
}

#: name -> a command that reads artefacts, and what is kept of its output
REPLAYS = {
    "masked-lm": (
        f"""pretrain_bert.py {TRAIN} --data-path corpus-wordpiece --seq-length 32 --train-iters 1
        --pretrained-checkpoint masked-lm --output-dir {{out}}""",
        "losses",
    ),
    "t5": (
        f"""pretrain_t5.py {TRAIN} --data-path corpus-sentencepiece --seq-length 32 --train-iters 1
        --pretrained-checkpoint t5 --output-dir {{out}}""",
        "losses",
    ),
    "resumed dual encoder, saved at TP 2": (
        f"{SEPARATE} --load dual-encoder-separate --train-iters 4 --output-dir {{out}}",
        "losses",
    ),
    "resumed end to end": (
        f"""{END_TO_END} --load end-to-end --train-iters 7 --index-dir end-to-end-index --output-dir {{out}}""",
        "losses",
    ),
    "vectors of the shared encoder": (
        """tools/embed_evidence.py --evidence evidence --load dual-encoder-shared --output {out} --device cpu
        --embedding-dtype float32""",
        "vectors",
    ),
    "vectors of the end-to-end retriever": (
        """tools/embed_evidence.py --evidence evidence --load end-to-end/retriever --output {out} --device cpu
        --embedding-dtype float32""",
        "vectors",
    ),
    "exact search": (f"{ASK} --embeddings embeddings --load dual-encoder-separate --output-dir {{out}}", "found"),
    "approximate search": (
        f"{ASK} --embeddings embeddings --load dual-encoder-separate --index index --nprobe 2 --output-dir {{out}}",
        "found",
    ),
    "lexical search": (f"{ASK} --bm25-index bm25 --output-dir {{out}}", "found"),
    "extractive reader": (f"{READ} --load extractive --output-dir {{out}}", "answers"),
    "fusion reader over T5": (f"{WRITE} --load fusion-t5 --output-dir {{out}}", "answers"),
    "fusion reader over BERT": (f"{WRITE} --load fusion-bert --output-dir {{out}}", "answers"),
    "reader of the end-to-end model": (f"{WRITE} --load end-to-end/reader --output-dir {{out}}", "answers"),
}


def main(folder: Path) -> None:
    """Write text and artefacts, then read copies of them and record what was found."""
    (folder / "text").mkdir(parents=True)
    shutil.copy(__file__, folder)
    write_text(folder / "text")
    for name, words in ARTEFACTS.items():
        with TemporaryDirectory() as scratch:
            run(words, folder, Path(scratch, "out"), num_processes=2 if name == "dual-encoder-separate" else 1)
    remove_the_needless(folder)
    expected = {}
    for name, (words, kept) in REPLAYS.items():
        with TemporaryDirectory() as scratch:
            shutil.copytree(folder, Path(scratch, "copy"))
            out, words = Path(scratch, "out"), words.replace(DROPOUT, NO_DROPOUT)
            run(words, Path(scratch, "copy"), out)
            expected[name] = {"command": " ".join(words.split()), "kept": kept, "result": KEPT[kept](out)}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def run(words: str, folder: Path, out: Path, num_processes: int = 1) -> None:
    """Run a command in the folder of the artefacts."""
    program, *flags = words.format(out=out).split()
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
        flags += ["--tensor-model-parallel-size", str(num_processes)]
    environment = {**os.environ, "PYTHONPATH": str(OLD), "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, str(OLD / program), *flags], cwd=folder, env=environment, check=True)


def remove_the_needless(folder: Path) -> None:
    """What tells of the machine and of the time, and the moments of runs that are not resumed."""
    moments = (path for path in folder.rglob("optimizer.*") if path.relative_to(folder).parts[0] not in RESUMED)
    for path in (*folder.rglob("run_record.json"), *folder.rglob("config.yaml"), *moments):
        path.unlink()


def losses(out: Path) -> list[list[float]]:
    """[iteration, loss] of every step."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [[record["iteration"], record["loss"]] for record in records if "loss" in record]


def vectors(out: Path) -> list[list[float]]:
    """The embeddings of every third passage."""
    (shard,) = out.glob("*.bin")
    return np.fromfile(shard, np.float32).reshape(len(KEYS) + 6, -1)[::3].tolist()


def found(out: Path) -> list[list[Any]]:
    """[question, passage, rank, score] of everything that was found."""
    lines = [line.split() for line in (out / "run.trec").read_text().splitlines()]
    return [[question, passage, int(rank), float(score)] for question, _, passage, rank, score, _ in lines]


def answers(out: Path) -> list[list[Any]]:
    """[question, answer, score] of every question."""
    records = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return [[record["question"], record["prediction"], record["score"]] for record in records]


KEPT = {"losses": losses, "vectors": vectors, "found": found, "answers": answers}


def write_text(folder: Path) -> None:
    """Where boxes stand: vocabularies, passages, documents, questions, and questions with passages."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *map(str, range(10)), *KEYS]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    passages = [_passage(number) for number in range(len(KEYS))]
    passages += [{"id": f"d{n}", "title": "title", "text": f"room {n} is in the corner"} for n in range(6)]
    (folder / "passages.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    documents = [
        {"title": f"title {key}", "text": " ".join(f"The box of {key} stands in room {n}." for n in range(3))}
        for key in KEYS
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    records = [
        {
            "dataset": "boxes",
            "question": f"where is the box of {key}",
            "answers": [KEYS[-1 - number]],
            "positive_ctxs": [{**_passage(number), "passage_id": f"p{number}"}],
            "negative_ctxs": [],
            "hard_negative_ctxs": [{**_passage(number - 1), "passage_id": f"p{number - 1}"}],
        }
        for number, key in enumerate(KEYS)
    ]
    (folder / "questions.json").write_text(json.dumps(records, indent=1) + "\n")
    read = [
        {
            "question": record["question"],
            "answers": record["answers"],
            "ctxs": [{**_passage(n), "score": "1"} for n in (number, number - 3)],
        }
        for number, record in enumerate(records)
    ]
    (folder / "reading.json").write_text(json.dumps(read, indent=1) + "\n")
    texts = [text for document in documents for text in document.values()]
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    # the usual normalisation is a table of 240 kilobytes
    settings = {"model_type": "bpe", "vocab_size": 60, "normalization_rule_name": "identity", "num_threads": 1}
    with open(folder / "spiece.model", "wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter([*texts, *(record["question"] for record in records)]),
            model_writer=file,
            minloglevel=2,
            **special,
            **settings,
        )


def _passage(number: int) -> dict[str, str]:
    number %= len(KEYS)
    text = f"the box of {KEYS[number]} stands in room {KEYS[-1 - number]} of the corner"
    return {"id": f"p{number}", "title": f"title {KEYS[number]}", "text": text}


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
