"""What a user of sentence-transformers can compute a model with: torch, ONNX Runtime, OpenVINO, and in 8 bits each.

Only the encoder changes: tokens, sorting, batches of 32 and pooling stay those of `SentenceTransformer.encode`. ONNX
Runtime (onnxruntime, onnx) and OpenVINO (openvino, for 8 bits nncf) need not be installed for anything else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from megatron_retrieval.errors import ConfigError

Backend = Literal["float32", "bfloat16", "onnx", "onnx-int8", "openvino", "openvino-int8"]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Run = Callable[[dict[str, Tensor]], Tensor]


def open_backend(name: Backend, folder: Path, texts: Sequence[str], num_threads: int) -> SentenceTransformer:
    """A model whose encoder is computed by a backend.

    Args:
        texts: some of those to be embedded: 8 bits of OpenVINO are calibrated with them.

    Raises:
        ConfigError: a package is missing.
    """
    model = SentenceTransformer(str(folder), device="cpu")
    if name == "float32":
        return model
    if name == "bfloat16":
        return model.bfloat16()
    open_run = _open_onnx if name.startswith("onnx") else _open_openvino
    run = open_run(model, name.endswith("int8"), texts, num_threads)
    model[0].model = _Foreign(model[0].model, run)
    return model


class _Foreign(nn.Module):
    """In the place of an encoder of transformers."""

    def __init__(self, encoder: nn.Module, run: Run) -> None:
        super().__init__()
        self.config, self._run = encoder.config, run

    def forward(self, **features: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self._run({name: features[name] for name in INPUTS}))


class _Traced(nn.Module):
    """An encoder by positional arguments, for exporters."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        found = self.encoder(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        states: Tensor = found.last_hidden_state
        return states


def _needed(*names: str) -> tuple[Any, ...]:
    """The modules of these names.

    Raises:
        ConfigError: one is not installed.
    """
    try:
        return tuple(import_module(name) for name in names)
    except ModuleNotFoundError as error:
        raise ConfigError(f"--backends: {error.name} is not installed (pip install {error.name}).") from error


def _example(model: SentenceTransformer, texts: Sequence[str]) -> tuple[Tensor, ...]:
    features = model.preprocess(list(texts))
    return tuple(features.get(name, torch.zeros_like(features["input_ids"])) for name in INPUTS)


def _open_onnx(model: SentenceTransformer, in_8_bits: bool, texts: Sequence[str], num_threads: int) -> Run:
    runtime, _ = _needed("onnxruntime", "onnx")
    with tempfile.TemporaryDirectory() as name:
        path, small = Path(name) / "model.onnx", Path(name) / "int8.onnx"
        torch.onnx.export(
            _Traced(model[0].model).eval(),
            _example(model, texts[:2]),
            str(path),
            input_names=list(INPUTS),
            output_names=["states"],
            dynamic_axes={each: {0: "rows", 1: "columns"} for each in (*INPUTS, "states")},
            dynamo=False,
        )
        if in_8_bits:
            (quantization,) = _needed("onnxruntime.quantization")
            # as sentence-transformers quantises for AVX2: unsigned values of 7 bits, whose sums do not overflow
            quantization.quantize_dynamic(
                path, small, weight_type=quantization.QuantType.QUInt8, per_channel=False, reduce_range=True
            )
        options = runtime.SessionOptions()
        options.intra_op_num_threads = num_threads
        session = runtime.InferenceSession(str(small if in_8_bits else path), options, ["CPUExecutionProvider"])

    def run(features: dict[str, Tensor]) -> Tensor:
        return torch.from_numpy(session.run(None, {name: part.numpy() for name, part in features.items()})[0])

    return run


def _open_openvino(model: SentenceTransformer, in_8_bits: bool, texts: Sequence[str], num_threads: int) -> Run:
    (openvino,) = _needed("openvino")
    graph = openvino.convert_model(_Traced(model[0].model).eval(), example_input=_example(model, texts[:2]))
    if in_8_bits:
        (nncf,) = _needed("nncf")
        samples = nncf.Dataset([_example(model, [text]) for text in texts[:100]])
        graph = nncf.quantize(graph, samples, model_type=nncf.ModelType.TRANSFORMER)
    compiled = openvino.compile_model(
        graph, "CPU", {"INFERENCE_NUM_THREADS": num_threads, "INFERENCE_PRECISION_HINT": "f32"}
    )
    request = compiled.create_infer_request()

    def run(features: dict[str, Tensor]) -> Tensor:
        request.infer([features[name].numpy() for name in INPUTS])
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    return run
