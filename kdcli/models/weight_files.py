"""Weight files, read without running any code and written whole or not at all."""

from __future__ import annotations

import codecs
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kdcli.disk import asking, at_path, is_file, refused, size_of, write_whole
from kdcli.errors import RunError, SpecPath, did_you_mean, first_line
from kdcli.models.checksums import (
    IN_METADATA,
    SEALED,
    digest_of_tensors,
    digest_of_weights,
    seal_holds,
)
from kdcli.spec.places import HERE, TORCHVISION, Places

FOREIGN = re.compile(r"(?:GLOBAL|[Cc]lass|[Ff]unction) `?([A-Za-z_][\w.]*\.\w+)")
"""Finds the name of the refused class or function in torch's refusal of a pickle."""

WHOLE = "is it a whole safetensors or torch file?"

Kind = Literal["floating", "integer", "complex"]

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
            return _plain(_safetensors_state(path), path)
        _refuse_compressed(path)
        whole = seal_holds(path)
        if whole is False:
            raise _damaged(path)
        with torch.serialization.safe_globals(_numpy_scalars()):
            found = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(found, Mapping) and found.get(SEALED) is True and whole is None:
            raise _damaged(path)
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


def _safetensors_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; RunError KD537 where they don't give the checksum that it holds."""
    state = safetensors.torch.load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if IN_METADATA in metadata and digest_of_weights(state, metadata) != metadata[IN_METADATA]:
        raise _damaged(path)
    return state


def _damaged(path: Path) -> RunError:
    return RunError.of(
        "KD537",
        f"`{path}` is damaged: its content does not give the checksum that it was saved with",
        "copy it again from where it was made, or take another file of the run: a checkpoint, student_best.safetensors",
    )


def read_shapes(source: str | Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, without reading the tensors; the errors of read_weights, a damaged file's aside."""
    return {key: shape for key, (shape, _) in described(source).items()}


def described(source: str | Path) -> dict[str, tuple[tuple[int, ...], Kind]]:
    """Shape and kind of number by name, without reading the tensors; nothing of torchvision's own weights."""
    if str(source).startswith(TORCHVISION):
        _torchvision_weights(str(source).removeprefix(TORCHVISION))
        return {}
    path = find_file(source)
    with _reading(path):
        if _is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}
                if not slices:
                    raise _no_tensors(path)
                return _stripped(
                    {key: (tuple(s.get_shape()), _kind_in_header(s.get_dtype())) for key, s in slices.items()}
                )
        _refuse_compressed(path)
        if not zipfile.is_zipfile(path):
            return _facts(read_weights(path))
        with FakeTensorMode(), torch.serialization.safe_globals(_numpy_scalars()):
            found = torch.load(path, map_location="cpu", weights_only=True)
        return _facts(_plain(found, path))


def kind_of(dtype: torch.dtype) -> Kind:
    """Which kind of number a type holds; booleans and quantised numbers count as integers."""
    return "complex" if dtype.is_complex else "floating" if dtype.is_floating_point else "integer"


def _kind_in_header(name: str) -> Kind:
    """The same of a type's name in safetensors' header: F32, BF16, F8_E4M3, I64, U8, BOOL, C64."""
    return "complex" if name.startswith("C") else "floating" if name.startswith(("F", "BF")) else "integer"


def _facts(state: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], Kind]]:
    return {key: (tuple(tensor.shape), kind_of(tensor.dtype)) for key, tensor in state.items()}


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
    return digest_of_tensors(state)


def save_safetensors(
    state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write all or nothing, with a checksum inside: a file of that name is either the old one or whole."""
    whole: dict[str, Tensor] = {}
    stored: set[int] = set()
    for key, tensor in state.items():
        flat = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory.
        pointer = flat.untyped_storage().data_ptr()
        whole[key] = flat.clone() if pointer in stored or flat.data_ptr() == tensor.data_ptr() else flat
        stored.add(whole[key].untyped_storage().data_ptr())
    stated = dict(metadata or {})
    stated[IN_METADATA] = digest_of_weights(whole, stated)
    try:
        # Not save_file: its file is readable by its owner alone, whatever the umask says.
        write_whole(path, safetensors.torch.save(whole, stated))
    except (RunError, safetensors.SafetensorError) as error:
        reason = error.__cause__ if isinstance(error, RunError) else error
        raise RunError.of(
            "KD540", f"`{path}` can't be written: {reason}", "is there room, and the right to?"
        ) from error


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
    if isinstance(found, Mapping) and not found:
        raise _no_tensors(path)
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


def _no_tensors(path: Path) -> RunError:
    return RunError.of("KD532", f"`{path}` holds no tensors: it is empty", WHOLE)


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
