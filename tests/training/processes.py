"""Runs in processes of their own, started fast from a server that has torch loaded, to be killed or signalled."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

SERVER = "forkserver"
_server = multiprocessing.get_context(SERVER)
_server.set_forkserver_preload(["tests.training.preload"])


def serve() -> str:
    """The start method, with its server running; that finds this package by the path alone."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[2]), *([before] if before else [])]
    )
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return SERVER


SECONDS = 120.0


@dataclass
class Started:
    """The processes of one run, by rank, and the pipe on which the first says what it has recorded."""

    processes: list[BaseProcess]
    told: Connection

    def wait_for(self, kind: str, number: int = 1) -> None:
        """Until that many records of this kind have come."""
        while number:
            assert self.told.poll(SECONDS), f"no {kind} came"
            number -= self.told.recv() == kind

    def kill(self, number: int = signal.SIGKILL) -> None:
        """A signal to every process that still lives."""
        for process in self.processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    def codes(self) -> list[int]:
        """The exit codes, once all are over."""
        for process in self.processes:
            process.join(SECONDS)
        assert not any(process.is_alive() for process in self.processes), "a process hangs"
        self.told.close()
        return [process.exitcode if process.exitcode is not None else -1 for process in self.processes]


def start(
    spec: Path, *changes: str, processes: int = 1, folder: Path | None = None, **options: Any
) -> Started:
    """`kdcli train` of a spec, in `processes` processes; die_in_save kills the first inside its n-th save."""
    serve()
    folder = folder or Path.cwd()
    port = free_port()
    receiving, sending = _server.Pipe(duplex=False)
    die_in_save = options.pop("die_in_save", None)
    started = []
    for rank in range(processes):
        place = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "MASTER_PORT": port}
        environment = {"MASTER_ADDR": "127.0.0.1", **{k: str(v) for k, v in place.items()}}
        process = _server.Process(
            target=_run,
            args=(
                str(folder),
                environment if processes > 1 else {},
                {"spec": str(spec), "changes": list(changes), "device": "cpu", **options},
                sending if rank == 0 else None,
                die_in_save if rank == 0 else None,
            ),
        )
        process.start()
        started.append(process)
    sending.close()
    return Started(started, receiving)


def finish(spec: Path, *changes: str, **options: Any) -> None:
    """Train to the end."""
    started = start(spec, *changes, **options)
    codes = started.codes()
    assert set(codes) == {0}, screen(options.get("folder") or Path.cwd())


def screen(folder: Path, rank: int = 0) -> str:
    """What a process of the last run in this folder printed."""
    return (folder / f"screen_{rank}.txt").read_text()


def free_port() -> int:
    """A port that nobody listens at right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(
    folder: str,
    environment: dict[str, str],
    arguments: dict[str, Any],
    told: Connection | None,
    die_in_save: int | None,
) -> None:
    os.chdir(folder)
    sys.path.insert(0, folder)
    os.environ.update(environment)
    sys.stderr = open(f"screen_{environment.get('RANK', 0)}.txt", "w", buffering=1)
    torch.set_num_threads(1)
    from kdcli.commands import guarded
    from kdcli.commands.options import TrainOptions
    from kdcli.commands.train import train
    from kdcli.report.live.recorder import Terminal

    if told is not None:
        show = Terminal.show

        def show_and_tell(terminal: Terminal, record: Any) -> None:
            show(terminal, record)
            told.send(type(record).__name__)

        Terminal.show = show_and_tell  # type: ignore[method-assign]
    if die_in_save is not None:
        _die_in_save(die_in_save)
    os._exit(_flushed(guarded(lambda: train(TrainOptions(**arguments)))))


def _flushed(code: int) -> int:
    sys.stderr.flush()
    return code


def _die_in_save(number: int) -> None:
    from kdcli import disk

    replace, saves = os.replace, [0]

    def die(source: Any, target: Any) -> None:
        saves[0] += str(target).endswith(".pt")
        if saves[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    disk.os.replace = die  # type: ignore[attr-defined]
