"""Weight files, read without running any code and written whole or not at all."""

from __future__ import annotations

import argparse
import codecs
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kdcli.disk import asking, at_path, is_file, refused, size_of, write_whole
from kdcli.errors import RunError, SpecPath, first_line
from kdcli.models.checksums import (
    IN_METADATA,
    SEALED,
    digest_of_tensors,
    digest_of_weights,
    seal_holds,
)
from kdcli.models.published import card_of
from kdcli.models.weight_states import (
    WHOLE,
    NestedState,
    first_state,
    flat_states,
    nested_states,
    printable,
)
from kdcli.spec.places import HERE, Places
from kdcli.spec.published import is_published, published, unknown_scheme

FOREIGN = re.compile(r"(?:GLOBAL|[Cc]lass|[Ff]unction) `?([A-Za-z_][\w.]*\.\w+)")
"""Finds the name of the refused class or function in torch's refusal of a pickle."""

Kind = Literal["floating", "integer", "complex"]


def find_file(name: str | Path, places: Places = HERE, where: SpecPath | None = None) -> Path:
    """The weights that the spec names at `where`, or the command line; raises KD530.

    The name of published weights comes back as it is.
    """
    if is_published(str(name)):
        return Path(name)
    found = places.find(str(name), where or ())
    with at_path(where):
        if is_file(found):
            return found
        help = unknown_scheme(str(name)) or places.missing(str(name), where or ())
        raise RunError.of("KD530", f"no weights file `{name}`", help)


def read_weights(source: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, of the first usual state of a file, a leading `module.` stripped.

    source, key: see read_states.
    """
    return first_state(read_states(source, key), Path(source))


def read_states(source: str | Path, key: str | None = None) -> list[NestedState[Tensor]]:
    """The states of a weights file, on the CPU, in the order in which they are tried.

    source: a safetensors or torch file (also kdcli's own, nested as weight_states.py says). key: the nested state to
    read, `a.b`. Nothing of the file is ever executed.
    """
    path = find_file(source)
    with _reading(path):
        if _is_safetensors(path):
            return flat_states(_safetensors_state(path), path, key)
        _refuse_archive(path)
        whole = seal_holds(path)
        if whole is False:
            raise _damaged(path)
        with torch.serialization.safe_globals(_plain_types()):
            found = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(found, Mapping) and found.get(SEALED) is True and whole is None:
            raise _damaged(path)
        states = nested_states(found, path, key)
        for state in states:
            _refuse_larger_than_held(state.tensors, path)
        return states


def _refuse_larger_than_held(tensors: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.layout is torch.strided and tensor.numel() * tensor.itemsize > max(
            tensor.untyped_storage().nbytes(), 1
        ):
            raise RunError.of(
                "KD533",
                f"`{path}` declares `{printable(name)}` larger than what it holds: {tuple(tensor.shape)}",
                "the file is damaged or not what it says",
            )


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
    states = described_states(source)
    return {k: shape for k, (shape, _) in first_state(states, Path(source)).items()}


def described_states(
    source: str | Path, key: str | None = None
) -> list[NestedState[tuple[tuple[int, ...], Kind]]]:
    """Shape and kind of number by name of each state, without reading the tensors."""
    path = find_file(source)
    with _reading(path):
        if _is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}
                facts = {k: (tuple(s.get_shape()), _kind_in_header(s.get_dtype())) for k, s in slices.items()}
                return flat_states(facts, path, key)
        _refuse_archive(path)
        if not zipfile.is_zipfile(path):
            return [state.of(_facts(state.tensors)) for state in read_states(path, key)]
        with FakeTensorMode(), torch.serialization.safe_globals(_plain_types()):
            found = torch.load(path, map_location="cpu", weights_only=True)
        return [state.of(_facts(state.tensors)) for state in nested_states(found, path, key)]


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
    if is_published(str(source)):
        return card_of(published(str(source))).classes
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
    allowed = {name for _, name in _plain_types()}
    named = FOREIGN.search(str(error))
    names = [name for name in sorted(found) if name not in allowed] or ([named[1]] if named else [])
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


def _refuse_archive(path: Path) -> None:
    """Refuse an archive that is a program, and one with compressed entries, which could unpack to any size."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = {entry.filename.partition("/")[2] for entry in entries}
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        raise _program(path, "a TorchScript archive", "torch.jit.load({path}).state_dict()")
    if "archive_format" in names or any(name.endswith("serialized_exported_program.json") for name in names):
        raise _program(path, "an exported program (torch.export)", "torch.export.load({path}).state_dict")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise RunError.of(
            "KD533", f"`{path}` holds compressed data, which torch does not write", "is it a weights file?"
        )


def _program(path: Path, what: str, state: str) -> RunError:
    return RunError.of(
        "KD546",
        f"`{path}` is {what}: a program with its weights, which would be run",
        "where you trust it, make a state dict of it in Python: "
        f"`torch.save({state.format(path=repr(str(path)))}, 'weights.pt')`",
    )


def _plain_types() -> list[Any]:
    """Types of plain values that training scripts keep beside the weights: making one runs nothing of the file.

    numpy's numbers (United-Perception), `args: argparse.Namespace` (torchvision's and timm's scripts, DeiT). A path
    in it becomes a pure one, which can't ask the file system.
    """
    from numpy._core.multiarray import scalar

    kinds = [np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType, np.dtypes.Int32DType]
    paths = [(PurePosixPath, "Posix"), (PureWindowsPath, "Windows")]
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        (np.dtype, "numpy.dtype"),
        (codecs.encode, "_codecs.encode"),
        (argparse.Namespace, "argparse.Namespace"),
        *((kind, f"numpy.dtypes.{kind.__name__}") for kind in kinds),
        *(
            (kind, f"{m}.{p}{n}Path")
            for kind, n in paths
            for p in ("", "Pure")
            for m in ("pathlib", "pathlib._local")
        ),
    ]
