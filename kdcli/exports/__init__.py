"""Formats a student can be exported to, by name; torch-free."""

from __future__ import annotations

from kdcli.spec.tables import Target

EXPORTS: dict[str, Target] = {
    "safetensors": Target("kdcli.exports.safetensors:Safetensors"),
    "onnx": Target("kdcli.exports.onnx:Onnx"),
    "torch-export": Target("kdcli.exports.torch_export:TorchExport"),
}

FORMATS = {".safetensors": "safetensors", ".onnx": "onnx", ".pt2": "torch-export"}
"""The format of a file by its ending."""
