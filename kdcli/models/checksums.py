"""Checksums inside files: a torch file's in the comment of its zip archive, a safetensors file's in its metadata.

They go with the file wherever it is copied and however it is named. A file without one (of another program, or of
kdcli before 0.3) is read unchecked.
"""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kdcli.disk import asking

IN_METADATA = "kdcli_sha256"
"""The key in a safetensors file's metadata."""

SEALED = "sealed"
"""The key by which a checkpoint says that its archive has a checksum: without one it is damaged."""

MARK = b"kdcli sha256 "
COMMENT = len(MARK) + 64
LENGTH = struct.Struct("<H")
"""How a zip archive ends: with the length of its comment, then the comment."""


def seal(archive: io.BytesIO) -> str:
    """Append an archive's SHA-256 to it as its comment; returns that of the file as it is then, in hex digits."""
    archive.seek(-LENGTH.size, os.SEEK_END)
    archive.write(LENGTH.pack(COMMENT))
    with archive.getbuffer() as view:
        digest = hashlib.sha256(view)
    comment = MARK + digest.hexdigest().encode()
    archive.write(comment)
    digest.update(comment)
    return digest.hexdigest()


def check_seal(data: bytes | memoryview | mmap.mmap) -> tuple[bool | None, str]:
    """Whether an archive's bytes give the checksum in its comment, None without one; and SHA-256 of all bytes."""
    with memoryview(data) as view:
        comment = bytes(view[-COMMENT:])
        if not comment.startswith(MARK):
            return None, hashlib.sha256(view).hexdigest()
        digest = hashlib.sha256(view[:-COMMENT])
    whole = digest.hexdigest().encode() == comment[len(MARK) :]
    digest.update(comment)
    return whole, digest.hexdigest()


def seal_holds(path: Path) -> bool | None:
    """Whether an archive on disk gives the checksum in its comment; None without one."""
    with asking(path), path.open("rb") as file:
        if file.seek(0, os.SEEK_END) < COMMENT:
            return None
        file.seek(-COMMENT, os.SEEK_END)
        if not file.read().startswith(MARK):
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return check_seal(data)[0]


def digest_of_tensors(state: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex over names, types, shapes and values, whatever the file format and the order."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_weights(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 in hex over tensors and all metadata but the checksum: what a safetensors file holds."""
    digest = hashlib.sha256(digest_of_tensors(state).encode())
    for key in sorted(metadata):
        if key != IN_METADATA:
            digest.update(f"{key}\0{metadata[key]}\0".encode())
    return digest.hexdigest()
