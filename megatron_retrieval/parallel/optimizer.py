"""Adam over a data-parallel model: fp32 main weights, clipping over all ranks, loss scaling, portable state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import ParamKey, get_megatron_optimizer, get_standard_config_overrides
from torch import Tensor, nn

from megatron_retrieval.parallel.collectives import broadcast_first
from megatron_retrieval.parallel.data_parallel import DataParallelModel
from megatron_retrieval.parallel.megatron_compat import optimizer_context
from megatron_retrieval.parallel.precision import PrecisionConfig, may_round, take_precise
from megatron_retrieval.parallel.topology import ProcessTopology


@dataclass(kw_only=True, frozen=True)
class OptimizerConfig:
    """Adam with decoupled weight decay; biases and layer norms are not decayed."""

    lr: float = 2e-5
    """Peak learning rate."""
    weight_decay: float = 0.1
    """Weight decay, per unit of learning rate."""
    adam_beta1: float = 0.9
    """Decay of the running mean of gradients."""
    adam_beta2: float = 0.999
    """Decay of the running mean of squared gradients."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""
    clip_grad: float = 1.0
    """Largest norm of the gradient over all parameters; 0 turns clipping off."""


@dataclass(frozen=True)
class StepResult:
    """The outcome of an optimizer step.

    Attributes:
        succeeded: False where the loss or the gradient is not finite, and the weights were left as they are.
        grad_norm: before clipping; None where gradients overflowed in fp16.
        is_searching_scale: they overflowed, and a lower loss scale may help.
    """

    succeeded: bool
    grad_norm: float | None
    is_searching_scale: bool = False

    @property
    def overflowed(self) -> bool:
        """Whether gradients left the range of fp16."""
        return not self.succeeded and self.grad_norm is None


class Optimizer:
    """Updates the parameters of `model` from its accumulated, reduced gradients; frozen ones stay as they are.

    Args:
        rate_multipliers: factors of the learning rate by prefix of the parameters' names, in which * is anything; 1 for
            all others.
    """

    def __init__(
        self,
        model: DataParallelModel,
        config: OptimizerConfig,
        precision: PrecisionConfig,
        topology: ProcessTopology,
        rate_multipliers: Mapping[str, float] | None = None,
    ) -> None:
        self._device, self._weight_decay = topology.device, config.weight_decay
        self._clip_grad, self._min_loss_scale = config.clip_grad, precision.min_loss_scale
        self._all_parameters = dict(model.module.named_parameters())
        self._parameters = {name: p for name, p in self._all_parameters.items() if p.requires_grad}
        dtypes = {parameter.dtype for parameter in self._all_parameters.values()}
        megatron_config = MegatronOptimizerConfig(
            optimizer="adam",
            lr=config.lr,
            weight_decay=config.weight_decay,
            adam_beta1=config.adam_beta1,
            adam_beta2=config.adam_beta2,
            adam_eps=config.adam_eps,
            clip_grad=config.clip_grad,
            # parts of a model may have different dtypes, and frozen parts pass gradients on
            bf16=torch.bfloat16 in dtypes,
            fp16=torch.float16 in dtypes,
            initial_loss_scale=precision.initial_loss_scale,
            min_loss_scale=precision.min_loss_scale,
            loss_scale_window=precision.loss_scale_window,
            hysteresis=precision.hysteresis,
        )
        overrides = get_standard_config_overrides(megatron_config)
        for prefix, multiplier in (rate_multipliers or {}).items():
            overrides[ParamKey(name=f"module.{prefix}*")] = {"lr_mult": multiplier}
        with optimizer_context(self._device):
            chained = get_megatron_optimizer(
                megatron_config,
                [model.ddp],
                config_overrides=overrides,
                use_gloo_process_groups=False,
                pg_collection=topology.groups,
            )
        (self._inner,) = chained.chained_optimizers
        for group in self._inner.param_groups:
            if "fused" in group and self._device.type == "cpu":  # torch's Adam, which would pass over memory ten times
                group["fused"] = True
        self._frozen: dict[str, Tensor] = {}
        for name, parameter in self._all_parameters.items():
            if (values := take_precise(parameter)) is not None:
                self.load_main_weight(name, values)
        self._has_scaler = getattr(self._inner, "grad_scaler", None) is not None

    @property
    def loss_scale(self) -> float:
        """Factor of the loss before backward; only with fp16 does it stand on the device, and reading it waits."""
        return float(self._inner.get_loss_scale().item()) if self._has_scaler else 1.0

    def step(self, lr: float, *, is_loss_finite: bool = True) -> StepResult:
        """Clip, then update all weights with learning rate `lr`, unless the loss or the gradient is not finite."""
        for group in self._inner.param_groups:
            group["lr"] = lr * group.get("lr_mult", 1.0)
            # in megatron-core its own scheduler would exempt biases and norms
            group["weight_decay"] = self._weight_decay * group.get("wd_mult", 1.0)
        with optimizer_context(self._device):
            # the steps of megatron-core's step(), which checks the norm of fp16 gradients only
            scale = self.loss_scale
            if self._inner.prepare_grads():
                return StepResult(False, None, is_searching_scale=scale > self._min_loss_scale)
            clip = self._clip_grad
            grad_norm = float(self._inner.clip_grad_norm(clip) if clip > 0 else self._inner.get_grad_norm())
            if not is_loss_finite or not math.isfinite(grad_norm):
                return StepResult(False, grad_norm)
            self._inner.step_with_ready_grads()
        return StepResult(True, grad_norm)

    def main_weight(self, name: str) -> Tensor:
        """The weights of the parameter `name` before its dtype rounded them: the fp32 copy that is trained, or what a
        frozen one was loaded from; itself where nothing is rounded."""
        parameter = self._all_parameters[name]
        return self._frozen.get(name, getattr(parameter, "main_param", parameter)).detach()

    def state_tensors(self) -> dict[str, Tensor]:
        """This rank's moments, named `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`, sharded as the parameter."""
        return {
            f"{moment}.{name}": self._moments(parameter)[moment]
            for name, parameter in self._parameters.items()
            for moment in ("exp_avg", "exp_avg_sq")
        }

    def state_scalars(self) -> dict[str, Any]:
        """The remaining state as JSON values: number of steps and the loss scaler."""
        first = next(iter(self._parameters.values()))
        scaler = getattr(self._inner, "grad_scaler", None)
        scaler_state = {key: float(value) for key, value in scaler.state_dict().items()} if scaler else {}
        # torch counts beside the moments, apex and Transformer Engine in the parameter groups
        counts = [self._moments(first).get("step", 0), *(group.get("step", 0) for group in self._inner.param_groups)]
        return {"num_steps": max(int(count) for count in counts), "loss_scaler": scaler_state}

    def load_state(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Restore the state from `state_tensors` and `state_scalars`; main weights are taken from the model. What was
        frozen has no moments there, and begins with none."""
        saved = set(tensors)
        with optimizer_context(self._device), torch.no_grad():
            for name, parameter in self._parameters.items():
                moments = self._moments(parameter)
                moments["step"] = torch.tensor(float(scalars["num_steps"]))
                for moment in ("exp_avg", "exp_avg_sq"):
                    if f"{moment}.{name}" in saved:
                        moments[moment].copy_(tensors[f"{moment}.{name}"])
            if not type(self._inner.optimizer).__module__.startswith("torch."):
                for group in self._inner.param_groups:
                    group["step"] = int(scalars["num_steps"])
            if scalars["loss_scaler"]:
                scaler = dict(scalars["loss_scaler"])
                scale = torch.tensor([scaler.pop("scale")], device=self._device)
                self._inner.grad_scaler.load_state_dict({"scale": scale, **{k: int(v) for k, v in scaler.items()}})

    def load_main_weight(self, name: str, values: Tensor) -> None:
        """Set the unrounded weights of a parameter (this rank's shard); the model has them already, rounded."""
        if name in self._parameters:
            self.main_weight(name).copy_(values)
        elif values.dtype != self._all_parameters[name].dtype and not may_round(self._all_parameters[name]):
            self._frozen[name] = values  # on the CPU: only saving needs them

    def equalise(self, names: Iterable[str], group: dist.ProcessGroup) -> None:
        """Give parameters that every rank of `group` holds whole the weights and moments of its first rank. Each rank
        rounds sums in its own way, so they may have grown apart; a checkpoint holds the first rank's."""
        if group.size() == 1:
            return
        with torch.no_grad():
            for name in sorted(self._parameters.keys() & set(names)):
                parameter, main = self._parameters[name], self.main_weight(name)
                moments = self._moments(parameter)
                for values in (main, moments["exp_avg"], moments["exp_avg_sq"]):
                    values.copy_(broadcast_first(values, group))
                parameter.copy_(main)

    def _moments(self, parameter: nn.Parameter) -> dict[str, Any]:
        """Adam's state of one parameter, zeros before the first step."""
        main = getattr(parameter, "main_param", parameter)
        state: dict[str, Any] = self._inner.optimizer.state[main]
        if not state:
            state.update(
                step=torch.tensor(0.0), exp_avg=torch.zeros_like(main.data), exp_avg_sq=torch.zeros_like(main.data)
            )
        return state
