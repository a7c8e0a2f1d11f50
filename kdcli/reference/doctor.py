"""Facts of this installation: versions, devices, threads, disk, extras."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kdcli import __version__
from kdcli.data.workers import cores_of_affinity
from kdcli.failures import text_of

DRIVER = Path("/sys/module/nvidia/version")
"""Where the kernel tells its driver's version."""

NEEDED = ("torch", "torchvision", "typer", "rich", "pyyaml", "pydantic", "safetensors", "numpy")
EXTRAS: dict[str, dict[str, str]] = {
    "demo": {"scikit-learn": "sklearn"},
    "timm": {"timm": "timm"},
    "hf": {"huggingface_hub": "huggingface_hub"},
    "opencv": {"opencv-python-headless": "cv2"},
    "detection": {"faster-coco-eval": "faster_coco_eval"},
    "report": {"matplotlib": "matplotlib"},
    "docs": {"markdown-it-py": "markdown_it", "pygments": "pygments"},
    "sweep": {"optuna": "optuna"},
    "onnx": {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
    "tensorboard": {"tensorboard": "tensorboard"},
    "wandb": {"wandb": "wandb"},
    "mlflow": {"mlflow": "mlflow"},
}
"""Extra: its packages, and the module each of them brings."""


def diagnose(folder: Path) -> dict[str, Any]:
    """Collect the facts; free disk is that of the folder. Nothing of the user's data or environment is read."""
    torch, broken = _imported()
    return {
        "kdcli": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in NEEDED},
        "broken": broken,
        "extras": {
            extra: {
                package: _version(package) if find_spec(module) else None for package, module in parts.items()
            }
            for extra, parts in EXTRAS.items()
        },
        "cpu": {
            "cores": os.cpu_count(),
            "usable": cores_of_affinity(),
            "torch_threads": None if torch is None else torch.get_num_threads(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
        "cuda": None if torch is None else _cuda(torch),
        "weights": None if torch is None else _weights(),
        "disk_free_bytes": shutil.disk_usage(folder).free,
        "editable": not Path(__file__).is_relative_to(sys.prefix),
    }


def _imported() -> tuple[Any, dict[str, str]]:
    """torch, None where it can't be imported; and why torch or torchvision can't, by name."""
    found, broken = {}, {}
    for name in ("torch", "torchvision"):
        try:
            found[name] = import_module(name)
        except Exception as error:  # whatever a broken installation raises
            broken[name] = text_of(error)
    return found.get("torch"), broken


def _weights() -> dict[str, Any]:
    from kdcli.models.fetching import is_offline
    from kdcli.models.hub import endpoint, hub_cache
    from kdcli.models.published import torch_cache

    return {
        "torch": _from_home(torch_cache()),
        "hub": _from_home(hub_cache()),
        "endpoint": endpoint(),
        "offline": is_offline(),
    }


def _from_home(path: Path) -> str:
    """A path below the home folder from `~`: a bug report needn't name its owner."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def _cuda(torch: Any) -> dict[str, Any]:
    return {
        "built_for": torch.version.cuda,
        "cudnn": _cudnn(torch),
        "nccl": _nccl(torch),
        "driver": _driver(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "devices": [
            {
                "name": torch.cuda.get_device_name(index),
                "memory_bytes": torch.cuda.get_device_properties(index).total_memory,
                "capability": ".".join(map(str, torch.cuda.get_device_capability(index))),
                # Natively, by tensor cores, both since Ampere.
                "bf16": torch.cuda.get_device_capability(index) >= (8, 0),
                "tf32": torch.cuda.get_device_capability(index) >= (8, 0),
            }
            for index in range(torch.cuda.device_count())
        ],
    }


def _cudnn(torch: Any) -> int | str | None:
    """The version of cuDNN, or why torch refuses the one that is here."""
    try:
        found: int | None = torch.backends.cudnn.version() if torch.version.cuda else None
        return found
    except RuntimeError as error:
        return f"BROKEN: {error}".partition(". ")[0]


def _nccl(torch: Any) -> str | None:
    """The version of NCCL that torch was built with."""
    if torch.version.cuda is None or not torch.distributed.is_nccl_available():
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def _driver() -> str | None:
    """The version of NVIDIA's kernel driver, None without one."""
    try:
        words = DRIVER.read_text(encoding="utf-8").splitlines()[0].split()
    except (OSError, IndexError):
        return None
    return next((word for word in words if word[:1].isdigit() and "." in word), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
