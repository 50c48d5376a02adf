"""Questions that a user has about the documents: what an encoder is fine-tuned with, and judged by."""

from __future__ import annotations

from pathlib import Path

from megatron_retrieval.applications.learn.ways import MICRO_BATCH_SIZE, Training
from megatron_retrieval.applications.mining.mining import MineNegativesConfig, mine_negatives
from megatron_retrieval.data.examples.dpr import DprDataConfig
from megatron_retrieval.data.files.dpr_json import write_json_list
from megatron_retrieval.data.files.question_files import question_columns
from megatron_retrieval.data.files.records import read_records
from megatron_retrieval.data.files.training_files import is_training, read_training_records
from megatron_retrieval.recipes import retriever_finetune
from megatron_retrieval.training.steps.contrastive_step import ContrastiveConfig

#: every so-many-th question is held out
_HELD_OUT_STRIDE = 5
#: passages that BM25 finds, among which the first with an answer is the positive
_DEPTH = 100


def hold_out_questions(questions: Path, evidence: Path, bm25_index: Path, folder: Path) -> tuple[Path, Path, int]:
    """Find hard negatives for the questions, and passages with an answer where the file names none; hold out a fifth.

    Returns:
        Training data to learn from, and to judge by; how many questions the latter has.

    Raises:
        DataError: the file is malformed, or no question has an answer in the passages found for it.
    """
    train, held_out = folder / "train.json", folder / "held-out.json"
    if not held_out.exists():
        mined = folder / "mined.json"
        has_passages = is_training(next(iter(read_records(questions, question_columns))))
        mine_negatives(
            MineNegativesConfig(
                train_data=questions,
                bm25_index=bm25_index,
                evidence=evidence,
                output=mined,
                distant_supervision=None if has_passages else _DEPTH,
            )
        )
        records = [record.values for record in read_training_records(mined)]
        write_json_list(train, (record for number, record in enumerate(records) if number % _HELD_OUT_STRIDE))
        write_json_list(held_out, records[::_HELD_OUT_STRIDE])
    return train, held_out, sum(1 for _ in read_training_records(held_out))


def fine_tune(start: Path, train: Path, training: Training, *, num_hard_negatives: int = 1) -> Path:
    """Fine-tune an encoder (DPR, arXiv 2004.04906); returns the checkpoints."""
    config = retriever_finetune.RetrieverFinetuneConfig(
        pretrained_checkpoint=str(start),
        training=training.config(),
        contrastive=ContrastiveConfig(micro_batch_size=MICRO_BATCH_SIZE),
        data=DprDataConfig(train_data=(str(train),), num_hard_negatives=num_hard_negatives),
    )
    return training.run(retriever_finetune.build, config)
