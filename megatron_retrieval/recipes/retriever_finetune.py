"""DPR: a dual encoder fine-tuned on questions with positive and hard negative passages (arXiv 2004.04906)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from megatron_retrieval.checkpoint.kinds.dual_encoder import DUAL_ENCODER
from megatron_retrieval.checkpoint.kinds.kind import AnyDescription
from megatron_retrieval.config.marks import HELD_OUT, INPUT
from megatron_retrieval.data.examples.dpr import DprDataConfig, DprDataset
from megatron_retrieval.data.examples.labelled import require_teacher
from megatron_retrieval.data.stores.evidence import EvidenceStore
from megatron_retrieval.errors import ConfigError
from megatron_retrieval.models.dual_encoder import DualEncoder
from megatron_retrieval.parallel.topology import ProcessTopology
from megatron_retrieval.recipes.contrastive import DualEncoderTrainingConfig, build_contrastive_trainer
from megatron_retrieval.refresh.config import IndexRefreshConfig
from megatron_retrieval.refresh.index_encoder import IndexEncoder
from megatron_retrieval.refresh.index_refresh import IndexRefresher
from megatron_retrieval.refresh.index_worker import worker_command
from megatron_retrieval.refresh.mined_negatives import MinedNegativesConfig, NegativeMiner
from megatron_retrieval.retrieval.embedding_job import EmbeddingJob
from megatron_retrieval.tokenizers.vocabularies import open_encoder_vocabulary
from megatron_retrieval.tokenizers.vocabulary import Vocabulary
from megatron_retrieval.training.resume import SavedModel
from megatron_retrieval.training.run import TrainingRun
from megatron_retrieval.training.trainer import Callback, Trainer
from megatron_retrieval.training.training_run import run_training


@dataclass(kw_only=True, frozen=True)
class RetrieverFinetuneConfig(DualEncoderTrainingConfig):
    """Fine-tune a dual encoder on questions with positive and hard negative passages (DPR)."""

    vocab_file: str | None = field(default=None, metadata=INPUT)
    """WordPiece vocabulary; needed where training starts from random weights."""
    lower_case: bool = True
    """Lower-case all text, as uncased vocabularies need."""
    valid_data: tuple[str, ...] = field(default=(), metadata=HELD_OUT)
    """Held-out DPR biencoder JSON files, for evaluation during training."""
    data: DprDataConfig
    mined: MinedNegativesConfig = field(default_factory=MinedNegativesConfig)
    index: IndexRefreshConfig = field(default_factory=IndexRefreshConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mined.evidence is None and (self.index.index_refresh_interval or self.index.embeddings):
            raise ConfigError(
                "--index-refresh-interval and --embeddings are of the index of --evidence: give it as well."
            )
        if self.mined.evidence is not None and not self.data.num_hard_negatives:
            raise ConfigError("--evidence gives hard negatives, and --num-hard-negatives 0 takes none.")
        if self.mined.evidence is not None and self.contrastive.is_taught and not self.contrastive.label_weight:
            raise ConfigError(
                f"--contrastive-loss {self.contrastive.contrastive_loss} learns from a teacher, who has not scored the "
                "passages that are mined from --evidence: give --label-weight as well, or another loss."
            )

    def with_artefact_defaults(self) -> Self:
        """The starting point's shape, text layout and casing are the defaults of their flags."""
        start, config = self.starting_point, super().with_artefact_defaults()
        if start is None:
            return config
        lower_case = start.vocabulary().settings().get("lower_case", config.lower_case)
        return dataclasses.replace(config, lower_case=lower_case)


def main(config: RetrieverFinetuneConfig, topology: ProcessTopology) -> None:
    """Train; leaves configuration, metrics and run record in `--output-dir`."""
    run_training(build, config, topology)


def build(config: RetrieverFinetuneConfig, topology: ProcessTopology) -> Trainer:
    """Read the data, build the model, and make the trainer.

    Raises:
        ConfigError: neither a checkpoint nor a vocabulary to start from.
        DataError, CheckpointError: an input cannot be used.
    """
    start = config.starting_point
    tokenizer = _vocabulary(config, start)
    evidence = None
    if config.mined.evidence is not None:
        evidence = EvidenceStore(config.mined.evidence)
        evidence.require_vocabulary(tokenizer, "the encoder in training")
    dataset = DprDataset(config.data, config.text_format, tokenizer, config.training.seed, evidence)
    if evidence is None:
        dataset.require_negatives(config.training.global_batch_size)
    held_out = None
    if config.valid_data:
        held_out = DprDataset(
            config.data.held_out(config.valid_data), config.text_format, tokenizer, config.training.seed
        )
    if config.contrastive.is_taught:
        loss = f"--contrastive-loss {config.contrastive.contrastive_loss}"
        require_teacher(loss, dataset, held_out, has_labels=config.contrastive.label_weight > 0)
    return build_contrastive_trainer(
        config,
        topology,
        start=start,
        tokenizer=tokenizer,
        examples=dataset,
        held_out=held_out,
        identity=config.data.identity(len(dataset)),
        bundles=dataset.bundles(),
        data_sets=dataset.data_sets(),
        callbacks=partial(_miners, config, dataset, evidence, topology),
    )


def _miners(
    config: RetrieverFinetuneConfig,
    dataset: DprDataset,
    evidence: EvidenceStore | None,
    topology: ProcessTopology,
    run: TrainingRun,
    model: DualEncoder,
    saved: SavedModel,
) -> list[Callback]:
    """What mines hard negatives, and what refreshes the index in which it does; nothing without evidence."""
    if evidence is None or config.mined.evidence is None:
        return []
    index, training, start = config.index, config.training, config.starting_point
    index_dir, batch_size = index.folder(training.log.output_dir), index.index_micro_batch_size
    job = EmbeddingJob(
        evidence=evidence,
        encode=model.encode_passages,
        text_format=config.text_format,
        embedding_dtype=index.embedding_dtype,
        micro_batch_size=batch_size,
    )
    miner = NegativeMiner(config.mined, model, dataset, topology, batch_size)
    refresher = IndexRefresher(
        index,
        IndexEncoder(model, run.optimizer.main_weight, job, topology, config=saved.config, assets=saved.assets),
        topology,
        index_dir=index_dir,
        swap=miner.swap,
        queries=lambda: None,
        num_compared=config.mined.mined_depth,
        metrics_log=run.metrics_log,
        start_fingerprint=start.fingerprint if start is not None and start.kind is DUAL_ENCODER else None,
        save_dir=training.save.save,
        worker_command=worker_command(
            index,
            index_dir=index_dir,
            evidence=config.mined.evidence,
            precision=training.precision,
            device=topology.device,
        ),
    )
    return [miner, refresher]


def _vocabulary(config: RetrieverFinetuneConfig, start: AnyDescription | None) -> Vocabulary:
    """The starting point's vocabulary, or the one that `--vocab-file` names; both only if they are the same."""
    given = None if config.vocab_file is None else open_encoder_vocabulary(config.vocab_file, config.lower_case)
    if start is None:
        if given is None:
            raise ConfigError(
                "nothing to start from: give --pretrained-checkpoint, or --vocab-file to train from random weights."
            )
        return given
    saved = start.vocabulary(lower_case=config.lower_case)
    if given is not None and given.fingerprint != saved.fingerprint:
        raise ConfigError(f"--vocab-file {config.vocab_file} is not the vocabulary of the checkpoint {start.folder}.")
    return saved
