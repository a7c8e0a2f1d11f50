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

from kdcli.engine.exports.format import Answer
from kdcli.engine.exports.portable import Portable
from kdcli.errors import RunError

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


class Onnx:
    """One file, weights inside: input `image` [batch, C, H, W], output `logits` [batch, K]."""

    suffix: ClassVar[str] = ".onnx"
    runner: ClassVar[str] = "onnxruntime, CPU"

    def check(self) -> None:
        """RunError KD760 without onnx, onnxscript and onnxruntime."""
        for name in LIBRARIES:
            try:
                import_module(name)
            except ImportError:
                raise RunError.of(
                    "KD760", f"export to ONNX needs {name}", "install it with `pip install 'kdcli[onnx]'`"
                ) from None

    def write(self, student: Portable, example: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
        """Export with a free batch size, metadata among the model's properties."""
        with _quiet():
            program: Any = torch.onnx.export(
                student,
                (example,),
                dynamo=True,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
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

        def answer(image: Tensor) -> Tensor:
            (logits,) = session.run(["logits"], {"image": image.numpy()})
            return torch.from_numpy(logits)

        return answer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its progress on standard output, and its own deprecations as warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
