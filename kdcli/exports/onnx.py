"""ONNX: a graph that runs without torch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from kdcli.errors import RunError
from kdcli.exports.format import Answer
from kdcli.exports.torch_export import free_batch
from kdcli.models.detection.deploy.candidates import ABSENT
from kdcli.tasks.task import Portable, Tensors

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


class Onnx:
    """One file, weights inside, whose inputs and outputs have the names that the student gives them."""

    suffix: ClassVar[str] = ".onnx"
    runner: ClassVar[str] = "onnxruntime, CPU"
    is_graph: ClassVar[bool] = True

    def check(self) -> None:
        """RunError KD760 without onnx, onnxscript and onnxruntime."""
        for name in LIBRARIES:
            try:
                import_module(name)
            except ImportError:
                raise RunError.of(
                    "KD760", f"export to ONNX needs {name}", "install it with `pip install 'kdcli[onnx]'`"
                ) from None

    def write(self, student: Portable, example: Tensors, path: Path, metadata: Mapping[str, str]) -> None:
        """Export with a free batch size, metadata among the model's properties."""
        with _quiet(), PlainAttention():
            program: Any = torch.onnx.export(
                student,
                example,
                dynamo=True,
                input_names=list(student.inputs),
                output_names=list(student.outputs),
                dynamic_shapes=free_batch(student),
                custom_translation_table=translations(),
                verbose=False,
            )
            program.model.metadata_props.update(metadata)
            program.save(str(path), external_data=False)

    def read(self, path: Path, student: Portable) -> Answer:
        """A session of onnxruntime on the CPU, with as many threads as torch has."""
        runtime: Any = import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def answer(*inputs: Tensor) -> Tensors:
            given = {name: value.numpy() for name, value in zip(student.inputs, inputs, strict=True)}
            return tuple(torch.from_numpy(value) for value in session.run(list(student.outputs), given))

        return answer


class PlainAttention(TorchFunctionMode):
    """While it is entered, torch's fused attention is computed by matrix products and a softmax.

    The exporter writes the fused one for four axes alone, and gives what it returns other strides than the network
    was traced with, so that a `view` behind it fails (BEiT, MaxViT, Hiera).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The function itself, or `attention` for the fused one."""
        chosen = attention if func is F.scaled_dot_product_attention else func
        return chosen(*args, **(kwargs or {}))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What scaled_dot_product_attention returns, [..., L, E_v] of queries [..., L, E] and S keys, not fused."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (one.repeat_interleave(repeats, dim=-3) for one in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
    if attn_mask is not None:
        by_bool = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if by_bool else scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p) @ value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress on standard output and its own deprecation warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


NO_LIMIT = 2**31 - 1
LEAST_SCORE = ABSENT / 2
BOOL = 9
"""ONNX's number for the type."""


def translations() -> dict[Any, Any]:
    """How `kdcli::suppress` is written in ONNX, for torch's exporter."""
    return {torch.ops.kdcli.suppress.default: _suppress}


def _suppress(boxes: Any, scores: Any, labels: Any = None, classes: int = 1, threshold: float = 0.5) -> Any:
    """boxes [G, m, 4], scores [G, m], labels [G, m] or nothing: bool [G, m]."""
    op: Any = import_module("onnxscript").opset18
    by_class = op.Unsqueeze(scores, [1])
    if labels is not None:
        each = op.Reshape(op.Constant(value_ints=list(range(classes))), [1, -1, 1])
        own = op.Equal(op.Unsqueeze(labels, [1]), each)
        by_class = op.Where(own, by_class, op.Constant(value_float=ABSENT))
    chosen = op.NonMaxSuppression(
        boxes,
        by_class,
        op.Constant(value_ints=[NO_LIMIT]),
        op.Constant(value_floats=[threshold]),
        op.Constant(value_floats=[LEAST_SCORE]),
    )  # rows of group, class, place
    where = op.Gather(chosen, [0, 2], axis=1)
    nothing = op.Expand(op.Constant(value_int=0), op.Shape(scores))
    ones = op.Expand(op.Constant(value_int=1), op.Slice(op.Shape(where), [0], [1]))
    return op.Cast(op.ScatterND(nothing, where, ones), to=BOOL)
