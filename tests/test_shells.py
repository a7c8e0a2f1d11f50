"""Completion in a real bash and a real zsh: TAB after TAB, a dotted key is walked to its end."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import struct
import sys
import termios
import time
from pathlib import Path

import pytest

from kdcli.commands.init import copy_sample, sample_specs

pytestmark = pytest.mark.slow

READY = b"ready"
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(_KDCLI_COMPLETE=source_bash kdcli)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -Uz compinit; compinit -u; eval "$(_KDCLI_COMPLETE=source_zsh kdcli)"',
    ),
}


LINES = (
    (
        *("kdcli train spe\t", "dig\t", "net.m\t", "kwargs.w\t"),
        "kdcli train specs/digits_kd.yaml net.model.kwargs.widths.",
    ),
    (
        "kdcli train specs/digits_kd.yaml trainer.max_ep\t",
        "5",
        "kdcli train specs/digits_kd.yaml trainer.max_epoch=5",
    ),
    ("kdcli methods kd_l\t", "x", "kdcli methods kd_loss x"),
    ("kdcli init digits_k\t", "x", "kdcli init digits_kd x"),
)
"""What is typed, and the line that comes of it: after a name a space, after what goes on none."""


class Shell:
    """A shell on a terminal of its own."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.terminal, other = os.openpty()
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        kdcli = folder / "bin" / "kdcli"
        kdcli.parent.mkdir()
        kdcli.write_text(
            f'#!/bin/sh\nexec "{sys.executable}" -c "import sys; sys.argv[0] = \'kdcli\'; '
            'from kdcli.cli import main; main()" "$@"\n'
        )
        kdcli.chmod(0o755)
        path = f"{kdcli.parent}:{os.environ['PATH']}"
        environment = {**os.environ, "HOME": str(folder), "PATH": path, "PS1": "$ ", "TERM": "xterm"}
        self.process = os.fork()
        if not self.process:  # pragma: no cover
            os.setsid()
            fcntl.ioctl(other, termios.TIOCSCTTY, 0)
            for number in (0, 1, 2):
                os.dup2(other, number)
            os.chdir(folder)
            os.execvpe(words[0], words, environment)
        os.close(other)

    def answer(self, typed: str, until: bytes | None = None, seconds: float = 20.0) -> str:
        """What comes after `typed`: up to `until`, else till nothing has come for a while."""
        os.write(self.terminal, typed.encode())
        text, end, quiet = b"", time.monotonic() + seconds, 2.5
        while time.monotonic() < end and (until is None or until not in text):
            if not select.select([self.terminal], [], [], quiet)[0]:
                break
            text += os.read(self.terminal, 65536)
        return text.decode(errors="replace")

    def close(self) -> None:
        """End the shell."""
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        os.close(self.terminal)


@pytest.mark.parametrize("name", SHELLS)
def test_keys_and_paths_are_walked_without_a_space(name: str, tmp_path: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    copy_sample(sample_specs()["digits_kd"], tmp_path / "specs")
    words, setup = SHELLS[name]
    shell = Shell(words, tmp_path)
    try:
        shell.answer(f"{setup}; echo re''ady\n", READY)
        for *typed, wanted in LINES:
            for words_and_tab in typed:
                shell.answer(words_and_tab)
            # `echo` before the line, by Control-A, prints what has become of it.
            seen = shell.answer("\x01echo \n")
            assert wanted in map(str.rstrip, seen.replace("\r", "\n").splitlines()), seen
    finally:
        shell.close()
