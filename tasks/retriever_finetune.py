"""Fine-tune a dual encoder; leaves configuration, metrics and run record in `--output-dir`."""

from __future__ import annotations

from pathlib import Path

from megatron_retrieval.config import write_config
from megatron_retrieval.parallel import ProcessTopology
from megatron_retrieval.recipes.retriever_finetune import RetrieverFinetuneConfig, build
from megatron_retrieval.reports.run_record import RunRecord

__all__ = ["RetrieverFinetuneConfig", "main"]


def main(config: RetrieverFinetuneConfig, topology: ProcessTopology) -> None:
    """Train to the end, or until a stop signal; in both cases a checkpoint and the run record remain."""
    record = RunRecord(config, topology.world_size)
    folder = Path(config.training.log.output_dir)
    trainer = build(config, topology)
    if topology.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_config(config, folder / "config.yaml")
    finished = trainer.fit()
    if topology.is_main:
        record.write(folder, iterations=trainer.iteration, finished=finished)
