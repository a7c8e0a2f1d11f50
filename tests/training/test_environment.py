"""What a run was made with, read without running anything of the checkout that it lies in."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kdcli.spec.places import HERE
from kdcli.training.environment import PACKED_BYTES, code_digest, environment, git_head
from tests.training.runs import spec_of

FIRST, SECOND = "1" * 40, "2" * 64


def write(path: str, text: str | bytes) -> None:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)


def head() -> tuple[str | None, str | None] | None:
    """Commit and branch of the working directory."""
    found = git_head(Path.cwd())
    return None if found is None else (found["commit"], found["branch"])


def test_a_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    write(".git/HEAD", "ref: refs/heads/work/deep\n")
    assert head() is None  # before the first commit
    write(".git/packed-refs", f"# pack-refs with: peeled\n{SECOND} refs/heads/work/deep\n^{FIRST}\n")
    assert head() == (SECOND, "work/deep")
    write(".git/refs/heads/work/deep", FIRST + "\n")
    assert head() == (FIRST, "work/deep")
    Path("runs/deeper").mkdir(parents=True)
    monkeypatch.chdir("runs/deeper")
    assert head() == (FIRST, "work/deep")


def test_no_branch_and_no_checkout() -> None:
    write(".git/HEAD", FIRST + "\n")
    assert head() == (FIRST, None)
    shutil.rmtree(".git")
    assert head() is None


def test_a_worktree_and_a_submodule(monkeypatch: pytest.MonkeyPatch) -> None:
    write("main/.git/HEAD", "ref: refs/heads/main")
    write("main/.git/refs/heads/main", FIRST)
    write("main/.git/refs/heads/side", SECOND)
    write("main/.git/worktrees/side/HEAD", "ref: refs/heads/side")
    write("main/.git/worktrees/side/commondir", "../..\n")
    write("side/.git", f"gitdir: {Path('main/.git/worktrees/side').absolute()}\n")
    write("main/part/.git", "gitdir: ../.git/modules/part\n")
    write("main/.git/modules/part/HEAD", "ref: refs/heads/own")
    write("main/.git/modules/part/refs/heads/own", "3" * 40)
    heads = {}
    for place in ("main", "side", "main/part"):
        with monkeypatch.context() as patch:
            patch.chdir(place)
            heads[place] = head()
    assert heads == {"main": (FIRST, "main"), "side": (SECOND, "side"), "main/part": ("3" * 40, "own")}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "ref: ../../secret",
        "ref: refs/heads/../../../secret",
        "ref: refs/heads/loop",
        "ref: refs/heads/\0",
        b"ref: refs/heads/\xff",
        "ref: refs/heads/" + "x" * 5000,
        FIRST[1:],
    ],
)
def test_a_head_that_leads_nowhere(text: str | bytes) -> None:
    write("secret", FIRST)
    write(".git/HEAD", text)
    write(".git/refs/heads/loop", "ref: refs/heads/loop")
    assert head() is None


def test_what_is_no_file_is_not_waited_for() -> None:
    Path(".git").mkdir()
    os.mkfifo(".git/HEAD")
    assert head() is None
    shutil.rmtree(".git")
    os.mkfifo(".git")
    assert head() is None


def test_endless_files_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    write(".git/HEAD", "ref: refs/heads/main")
    with open(".git/packed-refs", "wb") as file:
        file.truncate(PACKED_BYTES * 100)
    monkeypatch.setattr(
        os, "read", lambda handle, size: pytest.fail("read") if size > PACKED_BYTES + 1 else b""
    )
    assert head() is None


@pytest.mark.skipif(shutil.which("git") is None, reason="compares with git")
def test_it_is_what_git_says_and_nothing_of_the_repository_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    checkout, trap = tmp_path / "checkout", tmp_path / "sprung"
    checkout.mkdir()
    monkeypatch.chdir(checkout)

    def git(*words: str) -> str:
        named = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", *named, *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q", "-b", "work")
    write("one.bin", "1")
    write(".gitattributes", "*.bin filter=evil diff=evil\n")
    git("add", ".")
    git("commit", "-qm", "one")
    git("pack-refs", "--all")
    spring = f"touch {trap}; cat"
    for key in ("core.fsmonitor", "filter.evil.clean", "filter.evil.process", "diff.evil.textconv"):
        git("config", key, spring)
    write(".git/hooks/post-index-change", f"#!/bin/sh\n{spring}\n")
    Path(".git/hooks/post-index-change").chmod(0o755)
    write("one.bin", "2")
    git("status")
    assert trap.exists(), "the trap is none"
    trap.unlink()
    commit = git("rev-parse", "HEAD")
    trap.unlink(missing_ok=True)
    for name, value in {
        "GIT_DIR": "elsewhere",
        "GIT_SSH_COMMAND": spring,
        "GIT_EXTERNAL_DIFF": spring,
    }.items():
        monkeypatch.setenv(name, value)

    def run(event: str, arguments: Any) -> None:
        if watching and event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"):
            started.append(event)

    platform.platform(), platform.processor()  # both ask `uname` once
    watching, started = True, list[str]()
    sys.addaudithook(run)
    env = environment("cpu", 1, HERE, spec_of().spec)
    watching = False
    assert env["git"] == {"commit": commit, "branch": "work"}
    assert not trap.exists() and started == []


def test_code_of_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    write("plugged_in/__init__.py", "from plugged_in import part\n")
    write("plugged_in/part.py", "X = 1\n")
    write("plugged_in/other.py", "X = 1\n")
    assert code_digest("plugged_in") is None  # nothing of it is imported
    __import__("plugged_in")
    try:
        before = code_digest("plugged_in")
        assert before is not None and len(before) == 64
        write("plugged_in/other.py", "X = 2\n")
        assert code_digest("plugged_in") == before
        write("plugged_in/part.py", "X = 2\n")
        assert code_digest("plugged_in") != before
        assert environment("cpu", 1, HERE, spec_of().spec, ["plugged_in"])["code"] == {
            "plugged_in": code_digest("plugged_in")
        }
    finally:
        for name in ("plugged_in", "plugged_in.part"):
            sys.modules.pop(name)
