"""Whose fault an exception is, what is said of it, and that kdcli's own stays an exception."""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import kdcli
from kdcli.codes import CODES
from kdcli.commands import guarded
from kdcli.errors import Diagnostic, Interrupted, RunError, SpecError
from kdcli.failures import KNOWN, PLUGINS, Failed, doing, failure, own_mistake, with_place
from kdcli.parallel.devices import oom_as_error
from tests.training.runs import spec_of


def of_kdcli(code: str, **names: Any) -> Callable[[], Any]:
    """A function whose lines lie in kdcli's folder, as far as a traceback tells."""
    scope: dict[str, Any] = {"__name__": "kdcli.planted", "torch": torch, "F": F, **names}
    file = str(Path(kdcli.__file__).with_name("planted.py"))
    exec(compile(f"def planted():\n    {code}\n", file, "exec"), scope)
    return scope["planted"]  # type: ignore[no-any-return]


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Callable[..., Any]]]:
    """Makes a function `act(call)` of the user's, in a module of its own."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(body: str) -> Callable[..., Any]:
        (tmp_path / "kd_users.py").write_text(f"def act(call=None):\n    {body}\n")
        sys.modules.pop("kd_users", None)
        importlib.invalidate_caches()
        return importlib.import_module("kd_users").act  # type: ignore[no-any-return]

    yield make
    sys.modules.pop("kd_users", None)
    PLUGINS.discard("kd_users")


def step(action: Callable[[], Any]) -> None:
    """Do it in a block of kdcli's, where tracebacks begin."""
    of_kdcli("with doing('training step 3'): action()", doing=doing, action=action)()


def told(action: Callable[[], Any]) -> Diagnostic:
    with pytest.raises(Failed) as caught:
        step(action)
    (found,) = caught.value.diagnostics
    assert found.message.startswith("training step 3") and found.code in CODES
    return found


@pytest.mark.parametrize(
    "code",
    [
        "assert False, 'ours'",
        "raise RuntimeError('ours')",
        "raise NotImplementedError",
        "None.shape",
        "{}['key']",
        "[][0]",
        "1 / 0",
        "int('x')",
        "torch.zeros(2).nothing",
        "torch.zeros(2, nothing=3)",
        "import json; json.dumps(object())",
        "import json; json.loads('{')",
    ],
)
def test_our_own_mistake_stays_an_exception(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    def act() -> None:
        step(of_kdcli(code))

    assert guarded(act) == 3
    said = capsys.readouterr().err
    assert "kdcli's own fault" in said and "planted.py" in said
    with pytest.raises(BaseException) as caught:
        act()
    assert own_mistake(caught.value) == code.startswith("assert")


@pytest.mark.parametrize(
    ("code", "known", "said"),
    [
        (
            "torch.zeros(2, 3) @ torch.zeros(2, 3)",
            "KD749",
            "RuntimeError: (mm: )?mat1 and mat2 shapes cannot",
        ),
        ("torch.zeros(2).mean(3)", "KD749", "IndexError: Dimension out of range"),
        (
            "F.batch_norm(torch.zeros(1, 4), None, None, training=True)",
            "KD744",
            "ValueError: Expected more than",
        ),
        ("torch.empty(10**15)", "KD724", "RuntimeError: "),
        ("raise ValueError('T is negative')", "KD749", "ValueError: T is negative"),
        ("raise MemoryError", "KD724", "MemoryError"),
        ("open('/none/such')", "KD521", "cannot use `/none/such`: no such file or folder"),
        ("torch.zeros(2, 2, dtype=torch.bfloat16) @ torch.zeros(2, 2)", "KD748", "RuntimeError: expected"),
        (
            "torch.zeros(2, 3, 4).transpose(1, 2).view(2, 12)",
            "KD796",
            "RuntimeError: view size is not compatible",
        ),
    ],
)
def test_what_the_users_tensors_and_the_machine_cause_is_told(code: str, known: str, said: str) -> None:
    found = told(of_kdcli(code))
    assert found.code == known and re.search(f"failed: {said}", found.message), found.message
    assert known == "KD521" or "(kdcli/planted.py:2, in planted)" in found.message


@pytest.mark.parametrize("body", ["raise KeyError('x')", "1 / 0", "assert False", "return call()"])
def test_the_users_innermost_line_is_named(users: Callable[[str], Callable[..., Any]], body: str) -> None:
    act = users(body)
    found = told(of_kdcli("act(call)", act=act, call=of_kdcli("torch.zeros(2, 3) @ torch.zeros(2, 3)")))
    assert found.code == "KD749" and "kd_users.py:2, in act)" in found.message
    PLUGINS.add("kd_users")
    found = told(of_kdcli("act(call)", act=act, call=of_kdcli("torch.zeros(2, 3) @ torch.zeros(2, 3)")))
    assert found.code == "KD496" and "code of the plugin `kd_users` failed: " in found.message


def test_our_mistake_below_the_users_code_is_still_ours(users: Callable[[str], Callable[..., Any]]) -> None:
    act = users("return call()")
    with pytest.raises(AttributeError):
        step(of_kdcli("act(call)", act=act, call=of_kdcli("None.shape")))


def test_outside_of_all_blocks_only_plugins_and_the_system_are_told(
    users: Callable[[str], Callable[..., Any]],
) -> None:
    def outcome(action: Callable[[], Any]) -> str | None:
        with pytest.raises(Exception) as caught:
            action()
        assert caught.value.__traceback__ is not None
        found = failure(caught.value.with_traceback(caught.value.__traceback__.tb_next), running=False)
        return None if found is None else found.code

    act = users("1 / 0")
    assert outcome(act) is None
    PLUGINS.add("kd_users")
    assert outcome(act) == "KD496"
    assert outcome(of_kdcli("torch.zeros(2, 3) @ torch.zeros(2, 3)")) is None
    assert outcome(of_kdcli("raise PermissionError(13, 'no', '/x')")) == "KD521"


def test_what_a_data_worker_hands_on(users: Callable[[str], Callable[..., Any]]) -> None:
    file = Path(users("pass").__code__.co_filename)
    own = Path(kdcli.__file__).with_name("planted.py")

    def handed_on(*frames: Path, kind: type[Exception] = RuntimeError) -> Exception:
        lines = "".join(f'  File "{one}", line 7, in read\n    x = 1\n' for one in frames)
        text = f"Caught {kind.__name__} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):"
        return kind(f"{text}\n{lines}{kind.__name__}: no such image")

    def act(error: Exception) -> Callable[[], Any]:
        return of_kdcli("raise error", error=error)

    found = told(act(handed_on(own, file)))
    assert found.message.endswith(f"RuntimeError: no such image ({file}:7, in read)")
    with pytest.raises(AssertionError):
        step(act(handed_on(file, own, kind=AssertionError)))


def test_each_block_says_what_it_does_and_the_innermost_place_counts() -> None:
    with pytest.raises(RunError) as caught, doing("epoch 2"), doing(lambda: "step 7", ("mimic",)):
        with doing("job `a`", ("mimic", "jobs", "a")):
            raise ValueError("no")
    (found,) = caught.value.diagnostics
    assert found.message.startswith("epoch 2, step 7, job `a` failed: ValueError: no (")
    assert found.path == ("mimic", "jobs", "a") and isinstance(caught.value.__cause__, ValueError)


def test_an_error_of_ours_without_a_place_gets_the_block_s() -> None:
    with pytest.raises(RunError) as caught, doing("step 7"), doing("job `a`", ("mimic", "jobs", "a")):
        raise RunError.of("KD450", "`srd` wants two samples", "drop the last batch")
    (found,) = caught.value.diagnostics
    assert found.message == "step 7, job `a` failed: `srd` wants two samples"
    assert (found.code, found.help, found.path) == ("KD450", "drop the last batch", ("mimic", "jobs", "a"))
    placed = SpecError.at(("net",), "KD401", "no such module")
    with pytest.raises(SpecError) as other, doing("step 7", ("mimic",)):
        raise placed
    assert other.value is placed
    with pytest.raises(Interrupted), doing("step 7", ("mimic",)):
        raise Interrupted(Diagnostic(code="KD714", message="stopped"), 15)


SAYINGS = (
    ("KD724", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
    ("KD724", RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")),
    ("KD724", OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))),
    ("KD745", RuntimeError("When use_reentrant=True, torch.utils.checkpoint is incompatible with .grad()")),
    ("KD745", RuntimeError("Expected to mark a variable ready only once.")),
    ("KD746", RuntimeError("Expected to have finished reduction in the prior iteration before starting")),
    ("KD747", RuntimeError("CUDA error: device-side assert triggered")),
    ("KD747", IndexError("Target 4 is out of bounds.")),
    ("KD748", RuntimeError("mat1 and mat2 must have the same dtype, but got BFloat16 and Float")),
    ("KD748", RuntimeError("Input type (c10::BFloat16) and bias type (float) should be the same")),
    ("KD796", RuntimeError("view size is not compatible with input tensor's size and stride (at least")),
    ("KD791", RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation, but you set")),
    (
        "KD791",
        RuntimeError("Deterministic behavior was enabled with either `torch.use_deterministic_algorithms`"),
    ),
    ("KD443", ValueError("Tried to step 102 times. The specified number of total steps is 100")),
    ("KD740", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    ("KD521", RuntimeError("received 0 items of ancdata")),
    ("KD521", OSError(errno.EMFILE, os.strerror(errno.EMFILE))),
    ("KD516", RuntimeError("unable to allocate shared memory(shm) for file </torch_1>")),
    ("KD440", RuntimeError("SparseAdam does not support dense gradients, please consider Adam instead")),
)


@pytest.mark.parametrize(("code", "error"), SAYINGS, ids=lambda value: str(value)[:24])
def test_a_known_failure_comes_with_its_fix(
    code: str, error: Exception, users: Callable[[str], Callable[..., Any]]
) -> None:
    act = users("raise call")
    PLUGINS.add("kd_users")
    found = told(lambda: act(error))
    assert found.code == code and found.help == next(
        k.help for k in KNOWN if k.words.search(repr(error) + str(error))
    )


def test_every_known_failure_has_a_saying() -> None:
    texts = [f"{type(error).__name__}: {error}" for _, error in SAYINGS]
    missing = [known.words.pattern for known in KNOWN if not any(known.words.search(text) for text in texts)]
    assert len(missing) == 2, missing  # BatchNorm above, lost processes below


def test_a_lost_process_is_left_to_the_place_where_they_meet() -> None:
    lost = RuntimeError("[/pytorch/third_party/gloo/gloo/pair.cc:545] closed")
    with pytest.raises(RuntimeError, match="gloo"):
        step(of_kdcli("exec('raise error')", error=lost))


def test_memory_that_runs_out_inside_a_block_says_what_to_lower() -> None:
    with pytest.raises(RunError) as caught, oom_as_error(spec_of().spec):
        step(of_kdcli("torch.empty(10**15)"))
    (found,) = caught.value.diagnostics
    assert found.code == "KD724" and "the machine ran out of memory (batch_size 8" in found.message
    assert "training step 3 failed" in found.message and "batch_sampler.kwargs.batch_size" in str(found.help)


def test_a_long_message_keeps_its_first_sentences() -> None:
    text = with_place(RuntimeError("First says it. " + "More of the same. " * 40))
    assert text.startswith("RuntimeError: First says it.") and text.endswith("More of the same.")
    assert len(text) < 330


def test_traceback_shows_all(
    users: Callable[[str], Callable[..., Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    act = users("raise ValueError('deep below')")

    def command() -> None:
        with doing("training step 3"):
            act()

    assert guarded(command) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert guarded(command, traces=True) == 1
    said = capsys.readouterr().err
    assert said.count("ValueError: deep below") > 1 and "Traceback" in said and "in act" in said


@pytest.mark.parametrize("code", ["0", "3", "'no teacher file'"])
def test_code_of_the_users_that_ends_python_is_told(
    users: Callable[[str], Callable[..., Any]], capsys: pytest.CaptureFixture[str], code: str
) -> None:
    """A check that it ends is not passed."""
    act = users(f"import sys; sys.exit({code})")
    assert guarded(lambda: act(None)) == 1
    told = capsys.readouterr().err
    assert "KD496" in told and f"`sys.exit({code})` (" in told and "in act)" in told
    assert guarded(of_kdcli("import sys; sys.exit(130)")) == 130 and capsys.readouterr().err == ""
