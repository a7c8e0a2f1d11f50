"""Weight files, read without running any code and written whole or not at all."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kdcli.disk import asking, at_path, is_file, refused, size_of
from kdcli.errors import RunError, SpecPath, did_you_mean, first_line
from kdcli.spec.places import HERE, TORCHVISION, Places

FOREIGN = re.compile(r"(?:GLOBAL|[Cc]lass|[Ff]unction) `?([A-Za-z_][\w.]*\.\w+)")
"""Finds the name of the refused class or function in torch's refusal of a pickle."""

WHOLE = "is it a whole safetensors or torch file?"

NESTING = (("ema", "ema_state_dict"), ("model",), ("state_dict",), ())
"""Where a checkpoint may keep its tensors, best first; () is the bare state dict."""


def find_file(name: str | Path, places: Places = HERE, where: SpecPath | None = None) -> Path:
    """The weights that the spec names at `where`, or the command line; raises KD530.

    A `torchvision:` name comes back as it is.
    """
    if str(name).startswith(TORCHVISION):
        return Path(name)
    found = places.find(str(name), where or ())
    with at_path(where):
        if is_file(found):
            return found
        help = places.missing(str(name), where or ())
        raise RunError.of("KD530", f"no weights file `{name}`", help)


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, a leading `module.` stripped.

    source: a safetensors or torch file (also kdcli's own, and with the nestings of NESTING), or
    `torchvision:<Class_Weights.NAME>`. Nothing of the file is ever executed.
    """
    if str(source).startswith(TORCHVISION):
        return _torchvision_state(str(source).removeprefix(TORCHVISION))
    path = find_file(source)
    with _reading(path):
        if _is_safetensors(path):
            return _plain(safetensors.torch.load_file(path), path)
        _refuse_compressed(path)
        with torch.serialization.safe_globals(_numpy_scalars()):
            found = torch.load(path, map_location="cpu", weights_only=True)
        state = _plain(found, path)
        for key, tensor in state.items():
            if tensor.layout is torch.strided and tensor.numel() * tensor.itemsize > max(
                tensor.untyped_storage().nbytes(), 1
            ):
                raise RunError.of(
                    "KD533",
                    f"`{path}` declares `{key}` larger than what it holds: {tuple(tensor.shape)}",
                    "the file is damaged or not what it says",
                )
        return state


def read_shapes(source: str | Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, without reading the tensors; the errors of read_weights."""
    if str(source).startswith(TORCHVISION):
        _torchvision_weights(str(source).removeprefix(TORCHVISION))
        return {}
    path = find_file(source)
    with _reading(path):
        if _is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                return _stripped({key: tuple(file.get_slice(key).get_shape()) for key in file.keys()})
        _refuse_compressed(path)
        if not zipfile.is_zipfile(path):
            return {key: tuple(tensor.shape) for key, tensor in read_weights(path).items()}
        with FakeTensorMode(), torch.serialization.safe_globals(_numpy_scalars()):
            found = torch.load(path, map_location="cpu", weights_only=True)
        return {key: tuple(tensor.shape) for key, tensor in _plain(found, path).items()}


def stated_classes(source: str | Path) -> tuple[str, ...] | None:
    """The names of the classes that a weights file states, in the order of its logits; None where it states none.

    kdcli's own students have them as metadata, torchvision's weights have the `categories` of their card.
    """
    if str(source).startswith(TORCHVISION):
        names = _torchvision_weights(str(source).removeprefix(TORCHVISION)).meta.get("categories")
    else:
        names = _class_names(find_file(source))
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


def _class_names(path: Path) -> Any:
    try:
        if not _is_safetensors(path):
            return None
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get("class_names", "null"))
    except (OSError, ValueError, RunError, safetensors.SafetensorError):
        return None  # reported where the weights are read


def weights_hash(source: str | Path | Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over names, types, shapes and values: the same for every file format."""
    state = source if isinstance(source, Mapping) else read_weights(source)
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_safetensors(
    state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write all or nothing: a file of that name is either the old one or whole."""
    whole: dict[str, Tensor] = {}
    stored: set[int] = set()
    for key, tensor in state.items():
        flat = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory.
        pointer = flat.untyped_storage().data_ptr()
        whole[key] = flat.clone() if pointer in stored or flat.data_ptr() == tensor.data_ptr() else flat
        stored.add(whole[key].untyped_storage().data_ptr())
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not save_file: its file is readable by its owner alone, whatever the umask says.
        with part.open("wb") as file:
            file.write(safetensors.torch.save(whole, dict(metadata or {})))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise RunError.of(
            "KD540", f"`{path}` can't be written: {error}", "is there room, and the right to?"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def printable(text: str) -> str:
    """Text from a file without the control characters that a terminal would obey."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _torchvision_weights(name: str) -> Any:
    import torchvision.models  # takes as long as torch itself

    names = [
        str(weights)
        for model in torchvision.models.list_models()
        for weights in torchvision.models.get_model_weights(model)
    ]
    if name not in names:
        raise RunError.of("KD534", f"torchvision has no weights `{name}`", did_you_mean(name, names))
    return torchvision.models.get_weight(name)


def _torchvision_state(name: str) -> dict[str, Tensor]:
    weights = _torchvision_weights(name)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise RunError.of(
            "KD535",
            f"torchvision's weights `{name}` can't be downloaded: {error}",
            "download them where there is a network, and give the file instead",
        ) from error
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert whatever a broken or unsafe file raises into one RunError."""
    try:
        yield
    except RunError:
        raise
    except OSError as error:
        raise refused(path, error) from error
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    except MemoryError as error:
        raise RunError.of(
            "KD533", f"`{path}` declares more than memory holds", "is the file damaged?"
        ) from error
    except Exception as error:
        # A torn file fails in as many ways as there are readers.
        line = printable(first_line(error))[:300]
        raise RunError.of("KD532", f"`{path}` can't be read as weights: {line}", WHOLE) from error


def _refused(path: Path, error: Exception) -> RunError:
    """The finding for a pickle that torch would not read: what it asks for, or that it is none."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
    except Exception:
        found = []
    allowed = {name for _, name in _numpy_scalars()}
    named = FOREIGN.search(str(error))
    names = [name for name in found if name not in allowed] or ([named[1]] if named else [])
    if not names:
        return RunError.of("KD532", f"`{path}` can't be read as weights", WHOLE)
    needed = printable(", ".join(f"`{name}`" for name in names[:3]))
    return RunError.of(
        "KD536",
        f"`{path}` is a pickle that would run code: it needs {needed}",
        "where you trust it, save its state dict alone: `torch.save(model.state_dict(), ...)`",
    )


def _is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors, by its content: eight bytes of length, then a JSON header."""
    with asking(path), path.open("rb") as file:
        start = file.read(9)
    if len(start) == 9 and start[8:9] == b"{":
        length = struct.unpack("<Q", start[:8])[0]
        if length > size_of(path):
            raise RunError.of("KD532", f"`{path}` is cut off within its header", "fetch the file again")
        with asking(path), path.open("rb") as file:
            file.seek(8)
            json.loads(file.read(length))
        return True
    return path.suffix == ".safetensors"


def _refuse_compressed(path: Path) -> None:
    """torch stores tensors plainly; a compressed entry could unpack to any size."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise RunError.of(
                    "KD533",
                    f"`{path}` holds compressed data, which torch does not write",
                    "is it a weights file?",
                )


def _numpy_scalars() -> list[Any]:
    """Plain numpy numbers, which United-Perception keeps beside the weights."""
    from numpy._core.multiarray import scalar

    kinds = [np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType, np.dtypes.Int32DType]
    named = [(kind, f"numpy.dtypes.{kind.__name__}") for kind in kinds]
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (np.dtype, "numpy.dtype"),
        (codecs.encode, "_codecs.encode"),
        *named,
    ]


def _plain(found: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a loaded checkpoint by name."""
    if isinstance(found, Mapping) and "kdcli" in found and "trainee" in found:
        return _student(found)
    for keys in NESTING:
        inner = found
        for key in keys:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping):
            tensors = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}
            _refuse_without_values(tensors, path)
            if tensors:
                return _stripped(tensors)
    what = (
        f"a mapping of {', '.join(map(repr, list(found)[:5]))}"
        if isinstance(found, Mapping)
        else "no mapping"
    )
    raise RunError.of(
        "KD532",
        f"`{path}` holds no state dict but {what}",
        "expected tensors by name, plain or under `model`, `state_dict` or `ema.ema_state_dict`",
    )


def _refuse_without_values(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise KD532 for a tensor that is sparse, quantized, or on the meta device, where none has values."""
    for name, tensor in tensors.items():
        shown = f"`{path}` holds `{printable(name)}`"
        if tensor.device.type == "meta":
            help = "save the weights once they are loaded or initialised"
            raise RunError.of("KD532", f"{shown} without values, on the `meta` device", help)
        if tensor.layout is not torch.strided or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
            help = "save it dense: `tensor.to_dense()`, `tensor.dequantize()`"
            raise RunError.of("KD532", f"{shown} as a {kind} tensor; kdcli reads dense ones", help)


def _student(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The student of kdcli's own checkpoint: its moving average where there is one."""
    averaged = checkpoint.get("ema")
    if averaged:
        return {**averaged["parameters"], **averaged["buffers"]}
    prefix = "student."
    return {k.removeprefix(prefix): v for k, v in checkpoint["trainee"].items() if k.startswith(prefix)}


def _stripped(state: dict[str, Any]) -> dict[str, Any]:
    """Without what data-parallel and compiled wrappers put before every name."""
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
