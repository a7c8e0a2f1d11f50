"""The idx file format of MNIST and its kin, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdcli.errors import RunError

LIMIT_BYTES = 2**31
"""The most that a header may declare."""


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes that the file holds; exactly as long as its header says.

    Raises RunError KD510 for another magic number, type, number of dimensions or length.
    """
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    try:
        with opened as file:
            magic = file.read(4)
            if magic[:3] != b"\0\0\x08" or len(magic) != 4:
                raise _wrong(path, "it does not start like an idx file of bytes")
            if magic[3] != dimensions:
                raise _wrong(path, f"it has {magic[3]} dimensions instead of {dimensions}")
            header = file.read(4 * dimensions)
            if len(header) != 4 * dimensions:
                raise _wrong(path, "its header is cut short")
            shape = tuple(int(n) for n in np.frombuffer(header, dtype=">u4"))
            length = math.prod(shape)
            if length > LIMIT_BYTES:
                raise _wrong(path, f"its header declares {length:,} bytes")
            data = file.read(length + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as reason:
        raise _wrong(path, f"it is damaged ({reason})") from reason
    if len(data) != length:
        held = "more" if len(data) > length else f"{len(data):,}"
        raise _wrong(path, f"its header declares {length:,} bytes and {held} follow")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _wrong(path: Path, what: str) -> RunError:
    return RunError.of("KD510", f"`{path}` can't be read: {what}", "fetch the file again")
