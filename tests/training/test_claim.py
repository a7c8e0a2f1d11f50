"""One run holds a folder at a time, and a run that ends, however it ends, gives it free."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kdcli.errors import RunError
from kdcli.training import claim as claims
from kdcli.training.claim import ALIVE, LOCK, Claim, claim, holder_of
from tests.parallel.launched import TRAIN, TWO, command, prepare, wait_for
from tests.training.runs import SPEC

ROOT = Path("runs/one")


def refusal(root: Path = ROOT, **options: Any) -> str:
    """What a second claim is told, with its code."""
    with pytest.raises(RunError) as caught, claim(root, **options):
        pass
    (found,) = caught.value.diagnostics
    return f"{found.code} {found.message}"


def broken(held: Claim) -> str:
    """What the holder is told at its next write."""
    with pytest.raises(RunError) as caught:
        held.check()
    (found,) = caught.value.diagnostics
    return f"{found.code} {found.message}"


def files(root: Path = Path()) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def no_locks(monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOLCK) -> None:
    """A file system without flock."""

    def flock(handle: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)


def grow_old(path: Path, seconds: float) -> None:
    """As if nobody had touched a file for so long."""
    past = path.stat().st_mtime - seconds
    os.utime(path, (past, past))


def test_the_second_claim_is_refused_by_name_and_touches_nothing() -> None:
    with claim(ROOT) as held:
        before = files()
        assert json.loads(before[f"runs/one/{LOCK}"])["pid"] == os.getpid()
        said = refusal()
        assert said == f"KD770 runs/one is being trained by {held.holder}"
        assert f"pid {os.getpid()} on {held.holder.host} since 20" in said
        assert files() == before
        held.check()
    with claim(ROOT) as again:
        again.check()


def test_a_claim_leaves_nothing_where_nothing_was_written() -> None:
    with claim(ROOT):
        assert (ROOT / LOCK).is_file()
    assert not Path("runs").exists()
    Path("runs/other").mkdir(parents=True)
    with claim(ROOT):
        pass
    assert [path.name for path in Path("runs").iterdir()] == ["other"]
    Path("project/.git").mkdir(parents=True)
    with claim(Path("project")):
        pass
    assert [path.name for path in Path("project").iterdir()] == [".git"]


def test_the_mark_stays_where_a_run_has_written() -> None:
    with claim(ROOT):
        (ROOT / "train.log").touch()
    assert {path.name for path in ROOT.iterdir()} == {LOCK, "train.log"}


def test_a_refused_claim_leaves_the_lock_of_a_folder_that_both_have_just_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = claims._make
    with claim(ROOT):
        monkeypatch.setattr(claims, "_make", lambda root: (*make(root), root, root.parent))
        assert refusal().startswith("KD770")
        assert (ROOT / LOCK).is_file()


def test_a_folder_made_anew_before_it_is_locked_is_claimed_as_it_is_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock, times = claims._locked, iter(range(10))

    def late(path: Path) -> int | None:
        """Another claim removes the folder that it had made, and a third one makes it anew."""
        if next(times) == 0:
            shutil.rmtree(ROOT)
            ROOT.mkdir()
        return lock(path)

    monkeypatch.setattr(claims, "_locked", late)
    with claim(ROOT) as held:
        held.check()


def test_of_many_at_once_one_holds_the_folder_and_none_fails_otherwise() -> None:
    holding, most, wrong = [0], [0], list[str]()
    counted = threading.Lock()

    def attempts() -> None:
        for _ in range(40):
            try:
                with claim(ROOT) as held:
                    with counted:
                        holding[0] += 1
                        most[0] = max(most[0], holding[0])
                    held.check()
                    with counted:
                        holding[0] -= 1
            except RunError as error:
                wrong.extend(one.message for one in error.diagnostics if one.code != "KD770")

    threads = [threading.Thread(target=attempts) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and wrong == []
    assert files() == {}


def test_a_forked_child_does_not_keep_the_folder() -> None:
    context = multiprocessing.get_context("fork")
    ours, childs = context.Pipe()

    def live() -> None:
        childs.send("alive")
        childs.recv()

    with claim(ROOT):
        (ROOT / "train.log").touch()  # so that the lock file stays
        child = context.Process(target=live, daemon=True)
        child.start()
        assert ours.poll(60) and ours.recv() == "alive"
    try:
        # Released by closing the descriptor, as the system does for a killed process.
        with claim(ROOT):
            assert child.is_alive()
    finally:
        ours.send("end")
        child.join(60)
    assert child.exitcode == 0


def test_a_child_gives_nothing_free() -> None:
    with claim(ROOT) as held:
        pid = os.fork()
        if pid == 0:
            held.release()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert (ROOT / LOCK).is_file() and refusal().startswith("KD770")


# the folder goes away


def test_a_folder_that_is_deleted_moved_or_replaced_is_noticed() -> None:
    with claim(ROOT) as held:
        ROOT.rename("elsewhere")
        assert broken(held) == "KD772 runs/one was deleted, moved or replaced during the run"
        ROOT.mkdir()
        assert broken(held).startswith("KD772")
        ROOT.rmdir()
        Path("elsewhere").rename(ROOT)
        held.check()
        shutil.rmtree("runs")
        assert broken(held).startswith("KD772")


def test_a_disk_that_is_gone_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with claim(ROOT) as held:
        with monkeypatch.context() as patch:

            def stat(path: Any) -> None:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

            patch.setattr(claims.os, "stat", stat)
            assert broken(held) == "KD772 runs/one can't be reached any more: Stale file handle"


def test_a_deleted_lock_file_is_made_again() -> None:
    with claim(ROOT) as held:
        (ROOT / LOCK).unlink()
        held.check()
        assert refusal() == f"KD770 runs/one is being trained by {held.holder}"


def test_of_two_runs_after_the_lock_file_was_deleted_the_first_stops() -> None:
    with claim(ROOT) as held:
        (ROOT / LOCK).unlink()
        with claim(ROOT) as other:
            assert broken(held) == f"KD773 another run has taken over runs/one: {other.holder}"
            other.check()


# an earlier process of the same job


def test_a_job_that_was_started_again_waits_for_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    said: list[str] = []
    with ExitStack() as stack:
        held = stack.enter_context(claim(ROOT))
        assert held.holder.jobs == ("slurm 12",)
        threading.Timer(0.3, stack.pop_all().close).start()
        with claim(ROOT, restarted=True, say=said.append) as again:
            again.check()
    assert len(said) == 1 and "waiting up to 60 s" in said[0] and str(held.holder) in said[0]


def test_nobody_waits_for_another_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with claim(ROOT):
        monkeypatch.setenv("SLURM_JOB_ID", "13")
        said: list[str] = []
        assert refusal(restarted=True, say=said.append).startswith("KD770") and said == []


def test_waiting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "PATIENCE_SECONDS", 0.3)
    with claim(ROOT):
        began = time.monotonic()
        assert refusal(restarted=True).startswith("KD770")
        assert time.monotonic() - began >= 0.3


# without flock


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_without_flock_a_file_stands_for_the_lock(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    no_locks(monkeypatch, code)
    with claim(ROOT) as held:
        assert "no file locks (flock)" in held.notices[0]
        assert refusal() == f"KD770 runs/one is being trained by {held.holder}"
        held.check()
        (ROOT / "train.log").touch()
    assert {path.name for path in ROOT.iterdir()} == {LOCK, "train.log"}
    with claim(ROOT):
        pass


def test_the_holder_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    no_locks(monkeypatch)
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.02)
    with claim(ROOT):
        grow_old(ROOT / ALIVE, claims.STALE_SECONDS * 2)
        old = (ROOT / ALIVE).stat().st_mtime
        until = time.monotonic() + 5
        while (ROOT / ALIVE).stat().st_mtime == old:
            assert time.monotonic() < until, "no beat"
            time.sleep(0.01)
        assert refusal().startswith("KD770")


def test_one_that_gives_no_sign_of_life_is_taken_over_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    no_locks(monkeypatch)
    with claim(ROOT) as held:
        grow_old(ROOT / ALIVE, claims.STALE_SECONDS - 5)
        assert refusal().startswith("KD770")
        grow_old(ROOT / ALIVE, claims.STALE_SECONDS + 5)
        with claim(ROOT) as other:
            assert broken(held) == f"KD773 another run has taken over runs/one: {other.holder}"
            held.release()
            assert holder_of(ROOT / ALIVE) == other.holder


def test_a_new_holder_is_not_set_aside_for_the_stale_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    no_locks(monkeypatch)
    with claim(ROOT):
        stale = claims._is_stale

        def slow(path: Path) -> bool:
            """Found stale; before it is set aside another run has replaced it."""
            if holder_of(path) != before:
                return stale(path)
            path.unlink()
            path.write_bytes(json.dumps({**json.loads(content), "token": "new"}).encode())
            return True

        before, content = holder_of(ROOT / ALIVE), (ROOT / ALIVE).read_text()
        rename = os.rename

        def renamed(source: Any, target: Any) -> None:
            Path(source).unlink()
            Path(source).write_bytes(json.dumps({**json.loads(content), "token": "newer"}).encode())
            rename(source, target)

        monkeypatch.setattr(claims, "_is_stale", slow)
        monkeypatch.setattr(claims.os, "rename", renamed)
        assert refusal().startswith("KD770")
        assert json.loads((ROOT / ALIVE).read_text())["token"] == "newer"


def test_a_machine_with_locks_heeds_one_without(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        no_locks(patch)
        stack = ExitStack()
        held = stack.enter_context(claim(ROOT))
    with stack:
        assert refusal() == f"KD770 runs/one is being trained by {held.holder}"
        grow_old(ROOT / ALIVE, claims.STALE_SECONDS + 5)
        with claim(ROOT):
            assert not (ROOT / ALIVE).exists()


def test_a_lock_file_of_nonsense_names_nobody() -> None:
    path = Path("lock")
    for text in ("", "{}", "[" * 100_000, '{"started": 1e999}', "\xff"):
        path.write_text(text)
        assert holder_of(path) is None
    with claim(ROOT) as held:
        content = json.loads((ROOT / LOCK).read_text())
        (ROOT / LOCK).write_text(json.dumps({**content, "started": 1e300}))
        assert refusal() == "KD770 runs/one is being trained by another process"
        held.check()


# whole runs


@pytest.mark.slow
def test_two_runs_side_by_side_in_one_folder(folder: Path) -> None:
    place = prepare(folder / "a", "0 sleep")
    first = command(place, *TRAIN, RANK=0)
    wait_for(place / "asleep")
    os.kill(first.process.pid, signal.SIGSTOP)
    before = files(place / "out")
    for words in ((), ("--overwrite",), (*TWO, "--resume", "--max-restarts", "1")):
        second = command(place, *TRAIN, *words)
        assert second.code() == 1
        said = f"error KD770: out is being trained by pid {first.process.pid} on"
        assert said in second.screen(), second.screen()
    assert files(place / "out") == before
    first.process.kill()
    first.process.wait()
    third = command(place, *TRAIN, "--resume")
    assert third.code() == 0, third.screen()


@pytest.mark.slow
def test_a_killed_run_with_live_data_workers_frees_the_folder_at_once() -> None:
    Path("small.yaml").write_text(SPEC)
    workers = "dataset.dataloader.kwargs={num_workers: 2, in_memory: false}"
    words = (
        "train",
        "small.yaml",
        "saver.save_dir=out",
        "trainer.max_epoch=5000",
        workers,
        "--device",
        "cpu",
    )
    run = command(Path.cwd(), *words).process
    wait_for(Path("out/student_best.safetensors"))
    assert refusal(Path("out")).startswith(f"KD770 out is being trained by pid {run.pid} ")
    workers_left = children_of(run.pid)
    assert len(workers_left) >= 2
    run.kill()
    run.wait()
    with claim(Path("out")):
        # They look for their parent every few seconds.
        assert any(Path(f"/proc/{worker}").exists() for worker in workers_left)


def children_of(pid: int | None) -> list[int]:
    """The processes that a process has started, and that live."""
    children = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if f"\nPPid:\t{pid}\n" in text and "\nState:\tZ" not in text:
            children.append(int(status.parent.name))
    return children
