"""Blocks in which a test has no more rights than a user: root reads and writes whatever the mode of a file says."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

VERSION = 0x20080522
"""Of Linux's capability calls: two words of 32 bits for each set."""
OVERRIDES = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@contextmanager
def without_rights(path: Path, mode: int = 0) -> Iterator[None]:
    """Modes count inside the block, for root too, and `path` has this one; skips the test where that can't be."""
    before = path.stat().st_mode
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(VERSION, 0), (_Sets * 2)()
    if os.geteuid() == 0 and libc.capget(ctypes.byref(header), ctypes.byref(sets)):
        pytest.skip("this system has no capabilities to give up")
    effective = sets[0].effective
    path.chmod(mode)
    try:
        if os.geteuid() == 0:
            sets[0].effective = effective & ~OVERRIDES
            if libc.capset(ctypes.byref(header), ctypes.byref(sets)):
                pytest.skip("root can't give up its rights here")
        if mode == 0 and (os.access(path, os.R_OK, effective_ids=True)):
            pytest.skip("modes do not count here")
        yield
    finally:
        if os.geteuid() == 0:
            sets[0].effective = effective
            libc.capset(ctypes.byref(header), ctypes.byref(sets))
        path.chmod(before)
