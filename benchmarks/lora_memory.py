"""Memory and time of training steps by adapters over a causal language model: ours and PEFT's with the same weights.

Each runs in a process of its own: adapters of one rank beside all linears, Adam, batches of random tokens. The peak is
that of the steps, not of loading. PEFT quantises where bitsandbytes is installed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rivals.memory import forget_peak, resident_mib

from megatron_retrieval.checkpoint.huggingface.causal import causal_config_from_hf, causal_names, causal_table
from megatron_retrieval.checkpoint.huggingface.files import read_settings
from megatron_retrieval.checkpoint.huggingface.weight_files import read_weights
from megatron_retrieval.checkpoint.huggingface.weight_table import import_weights
from megatron_retrieval.checkpoint.store.reader import fill_model
from megatron_retrieval.config.checks import Checked, PositiveInt
from megatron_retrieval.config.program import run_program
from megatron_retrieval.models.adapters import LoraConfig, adapt
from megatron_retrieval.models.causal_lm import CausalLM
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.optimizer import Optimizer, OptimizerConfig
from megatron_retrieval.parallel.precision import PrecisionConfig
from megatron_retrieval.parallel.topology import ParallelConfig, ProcessTopology, process_topology
from megatron_retrieval.types.tokens import TokenBatch

#: the shape of SmolLM2-135M
SMOLLM2: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
PEFT_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(kw_only=True, frozen=True)
class LoraMemoryConfig(Checked):
    """Measure training steps by adapters, ours and PEFT's."""

    model: Path | None = None
    """Hugging Face folder of a causal language model; default: random weights of the shape of SmolLM2-135M."""
    rank: PositiveInt = 16
    """Rank of the adapters; alpha is twice as much."""
    batch_size: PositiveInt = 4
    """Texts a step."""
    num_tokens: PositiveInt = 256
    """Tokens of the longest text; the others are shorter, down to a quarter of it."""
    num_steps: PositiveInt = 3
    """Steps; the time is that of the fastest."""
    threads: PositiveInt = 1
    """CPU threads."""


def main(config: LoraMemoryConfig) -> None:
    context = multiprocessing.get_context("spawn")
    variants = ["ours, fp32 base", "ours, NF4 base", "PEFT, fp32 base"]
    if importlib.util.find_spec("bitsandbytes"):
        variants.append("PEFT, NF4 base (bitsandbytes)")
    with tempfile.TemporaryDirectory() as random_model:
        if config.model is None:
            config = dataclasses.replace(config, model=_write_random(Path(random_model)))
        _compare(config, variants, context)


def _write_random(folder: Path) -> Path:
    import transformers

    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMOLLM2)).save_pretrained(folder)
    return folder


def _compare(config: LoraMemoryConfig, variants: Sequence[str], context: Any) -> None:
    for variant in variants:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            process = context.Process(target=_measure, args=(config, variant, result))
            process.start()
            process.join()
            found = json.loads(result.read_text()) if result.is_file() else {"failed": process.exitcode}
        sys.stdout.write(json.dumps({"variant": variant, "load": round(os.getloadavg()[0], 1), **found}) + "\n")
        sys.stdout.flush()


def _measure(config: LoraMemoryConfig, variant: str, result: Path) -> None:
    torch.set_num_threads(config.threads)
    torch.manual_seed(0)
    lengths = torch.linspace(config.num_tokens, config.num_tokens / 4, config.batch_size).long()
    ids = torch.randint(5, 1000, (config.batch_size, config.num_tokens))
    with process_topology(ParallelConfig(device="cpu")) as topology:
        prepare = _ours(config, "NF4" in variant, topology) if variant.startswith("ours") else _peft(config, variant)
        step, num_weights = prepare
        after_load = int(resident_mib())
        forget_peak()
        seconds, losses = [], []
        for _ in range(config.num_steps):
            start = time.perf_counter()
            losses.append(step(ids, lengths))
            seconds.append(time.perf_counter() - start)
    peak = int(resident_mib("VmHWM"))
    numbers = {"MiB before": after_load, "MiB peak": peak, "seconds a step": round(min(seconds), 2)}
    result.write_text(json.dumps({**numbers, "trained": num_weights, "losses": [round(loss, 4) for loss in losses]}))


def _ours(config: LoraMemoryConfig, quantise: bool, topology: ProcessTopology) -> tuple[Callable[..., float], int]:
    model = _import(config, topology)
    lora = LoraConfig(
        lora_rank=config.rank, lora_alpha=2.0 * config.rank, lora_base_dtype="nf4" if quantise else "auto"
    )
    adapt(model, lora, topology)
    parallel = DataParallelModel(model.train(), topology)
    optimizer = Optimizer(parallel, OptimizerConfig(lr=1e-4), PrecisionConfig(), topology)

    def step(ids: torch.Tensor, lengths: torch.Tensor) -> float:
        parallel.zero_gradients()
        is_place = torch.arange(ids.size(1) - 1) < lengths[:, None] - 1
        places = torch.nn.functional.pad(is_place, (0, 1)).flatten().nonzero()[:, 0]
        logits = model(TokenBatch(ids, lengths), places)
        loss = torch.nn.functional.cross_entropy(logits, ids.flatten()[places + 1])
        loss.backward()
        parallel.reduce_gradients()
        optimizer.step(1e-4)
        return loss.item()

    return step, sum(p.numel() for p in model.parameters() if p.requires_grad)


def _import(config: LoraMemoryConfig, topology: ProcessTopology) -> CausalLM:
    assert config.model is not None
    shape = causal_config_from_hf(read_settings(config.model / "config.json"), config.model)
    state = causal_names(read_weights(config.model), shape, config.model)
    weights = import_weights(state, causal_table(shape), config.model, "a causal language model")
    model = CausalLM(shape, topology)
    fill_model(model, weights.keys(), weights.__getitem__, topology, source=str(config.model))
    return model


def _peft(config: LoraMemoryConfig, variant: str) -> tuple[Callable[..., float], int]:
    import peft
    import transformers

    settings: dict[str, Any] = {}
    if "NF4" in variant:
        settings["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    plain = transformers.AutoModelForCausalLM.from_pretrained(str(config.model), dtype=torch.float32, **settings)
    lora = peft.LoraConfig(r=config.rank, lora_alpha=2 * config.rank, target_modules=PEFT_TARGETS)
    model = peft.get_peft_model(plain, lora).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step(ids: torch.Tensor, lengths: torch.Tensor) -> float:
        optimizer.zero_grad()
        mask = (torch.arange(ids.size(1)) < lengths[:, None]).long()
        labels = ids.masked_fill(mask == 0, -100)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step, sum(p.numel() for p in trained)


if __name__ == "__main__":
    run_program(LoraMemoryConfig, main)
