"""The meeting of a run's processes: which run they are of, who is missing, whether all were started alike."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from kdcli import __version__
from kdcli.errors import RunError, cut_off, first_line
from kdcli.parallel.launch import restarts
from kdcli.parallel.pulse import waiting_for_others
from kdcli.spec.text.nodes import leaves
from kdcli.waiting import waiting

MEETING_SECONDS = 120.0
PATIENCE = "KDCLI_MEETING_SECONDS"
"""The variable that says how long processes wait for each other at the start."""

OWNER = "kdcli/run"
MOST_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What a process says of itself at the meeting. facts: what must be equal in all, by name; JSON data.

    gpu: the name of the CUDA device that it uses, which must differ in all.
    """

    host: str
    pid: int
    world_size: int
    facts: Mapping[str, Any]
    gpu: str | None = None

    def text(self) -> str:
        """As JSON."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    @property
    def place(self) -> str:
        """Where it runs, for messages."""
        return f"{self.host}, pid {self.pid}"


def this_process(world_size: int, facts: Mapping[str, Any], gpu: str | None = None) -> Member:
    """What this process says of itself: the facts, and the versions of kdcli (with its source) and torch."""
    versions = {"version of kdcli": f"{__version__} ({source_hash()})", "version of torch": torch.__version__}
    said = json.loads(json.dumps({**facts, **versions}, default=str))
    return Member(host=socket.gethostname(), pid=os.getpid(), world_size=world_size, facts=said, gpu=gpu)


def source_hash() -> str:
    """The first digits of SHA-256 over kdcli's source files."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def token() -> str:
    """The run that this process is of, as its launcher names it: equal in its processes, other in another run's."""
    environment = os.environ
    run = environment.get("TORCHELASTIC_RUN_ID")
    if run is not None:
        return f"launcher's run {run}"
    if "SLURM_STEP_ID" in environment:
        return f"Slurm job {environment.get('SLURM_JOB_ID', '?')}, step {environment['SLURM_STEP_ID']}"
    return "a run without a name"


def port_of(job: str, step: str) -> int:
    """The port, from 20000 to 39999, at which the processes of one step of a Slurm job meet.

    Steps of one job, and jobs with neighbouring numbers, may share a machine: their ports are far apart.
    """
    return 20000 + zlib.crc32(f"{job}.{step}".encode()) % 20000


def patience() -> float:
    """How many seconds processes wait for each other; raises RunError KD732 where the variable is no number."""
    text = os.environ.get(PATIENCE, str(MEETING_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise RunError.of(
            "KD732", f"{PATIENCE}={text} is no number of seconds", f"for example: {PATIENCE}=300"
        )
    return seconds


def open_store(rank: int, world_size: int, seconds: float) -> Store:
    """The store where the processes meet, without entries from before a restart.

    Raises RunError KD728 where nobody is at its address, KD729 where another run is.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return PrefixStore(f"restart {restarts()}", next(rendezvous("env://"))[0])
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdigit():
        raise RunError.of(
            "KD732",
            "the processes don't know where to meet: RANK and WORLD_SIZE are set, MASTER_ADDR or MASTER_PORT is not",
            "set MASTER_ADDR and MASTER_PORT alike for all, or start with `kdcli train --nproc`, torchrun or srun",
        )
    try:
        with waiting(lambda: f"process 0 at {host}:{port}", min(30.0, seconds / 2)):
            if rank != 0:
                _wait_for_listener(host, int(port), seconds)
            store = _connected(host, int(port), seconds, is_first=rank == 0)
    except (dist.DistError, RuntimeError, ValueError, OSError) as error:
        raise _nobody(host, int(port), rank, world_size, seconds, error) from error
    return store


def _wait_for_listener(host: str, port: int, seconds: float) -> None:
    """Until somebody listens there; raises OSError where nobody does in time. torch's own wait hears no signal."""
    until = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host, port), timeout=min(5.0, seconds)):
                return
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.1)


def _connected(host: str, port: int, seconds: float, *, is_first: bool) -> Store:
    return dist.TCPStore(  # type: ignore[attr-defined]
        host,
        port,
        is_master=is_first,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
        multi_tenant=True,
    )


def _nobody(host: str, port: int, rank: int, world_size: int, seconds: float, error: Exception) -> RunError:
    place = f"{host}:{port}"
    if rank != 0:
        return RunError.of(
            "KD728",
            f"process {rank} of {world_size} waited {seconds:.0f} s for process 0 at {place}: {first_line(error)}",
            f"look at why process 0 did not start; {PATIENCE}=600 waits longer",
        )
    try:
        owner = _owner(_connected(host, port, 5.0, is_first=False), 2.0)
    except (dist.DistError, RuntimeError):
        owner = None
    who = "another program" if owner is None else f"another run ({owner})"
    return RunError.of(
        "KD729",
        f"process 0 can't open {place}, where the processes of a run meet: {first_line(error)}; perhaps {who} has it",
        "set MASTER_PORT to a free port, the same for all processes of this run",
    )


def _owner(store: Store, seconds: float) -> str | None:
    """The run whose meeting a store is; None where it says nothing."""
    text = _awaited(store, OWNER, seconds)
    return None if text is None else text.decode()


def _awaited(store: Store, key: str, seconds: float) -> bytes | None:
    """What the store holds under a key; None where nothing comes within so many seconds."""
    until = time.monotonic() + seconds
    while not store.check([key]):
        if time.monotonic() > until:
            return None
        time.sleep(0.05)
    content: bytes = store.get(key)
    return content


def meet(store: Store, rank: int, member: Member, seconds: float) -> dict[int, Member]:
    """All processes by rank, once each has come, is of this run and was started alike.

    Raises the same RunError in each: KD720 where several would use one GPU, KD727 where they were started differently,
    KD728 where some don't come. One of
    another run, or one whose rank is here already, is turned away with KD729; the others go on waiting.
    """
    _belongs(store, rank, seconds)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and store.add(f"kdcli/came/{rank}", 1) > 1:
        here = _said(store, rank, 2.0)
        place = f" ({here.place})" if here is not None else ""
        raise RunError.of(
            "KD729",
            f"a process {rank} of this run is here already{place}",
            "RANK must differ in each; two runs side by side need another MASTER_PORT each",
        )
    store.set(f"kdcli/said/{rank}", member.text())
    members = _all(store, member, seconds)
    _leave_together(store, rank, member.world_size)
    problem = unlike(members)
    if problem is not None:
        raise RunError.of(
            "KD727",
            problem,
            "give all processes the same command, the same files and the same installation",
        )
    refuse_shared_gpus(members)
    return members


def _belongs(store: Store, rank: int, seconds: float) -> None:
    own = token()
    if rank == 0:
        store.set(OWNER, own)
        return
    owner = _owner(store, seconds)
    if owner is not None and owner != own:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RunError.of(
            "KD729",
            f"the processes of another run meet at {place} ({owner}), and this one is of {own}",
            "set MASTER_PORT to a free port, the same for all processes of this run",
        )


def _said(store: Store, rank: int, seconds: float) -> Member | None:
    text = _awaited(store, f"kdcli/said/{rank}", seconds)
    return None if text is None else Member(**json.loads(text))


def _all(store: Store, member: Member, seconds: float) -> dict[int, Member]:
    """Every process; polled, so that a signal is heard and those missing can be named."""
    members: dict[int, Member] = {}
    missing = list(range(member.world_size))
    until = time.monotonic() + seconds
    pause = 0.005
    with waiting(lambda: f"{ranks_text(missing)} of {member.world_size} to come", min(30.0, seconds / 2)):
        while missing:
            for rank in list(missing):
                if store.check([f"kdcli/said/{rank}"]):
                    members[rank] = Member(**json.loads(store.get(f"kdcli/said/{rank}")))
                    missing.remove(rank)
            others = {rank: one for rank, one in members.items() if one.world_size != member.world_size}
            if others:
                raise RunError.of(
                    "KD727",
                    f"this process is one of {member.world_size}, and {ranks_text(list(others))} "
                    f"one of {next(iter(others.values())).world_size}: WORLD_SIZE differs",
                    "give all processes the same WORLD_SIZE",
                )
            if missing and time.monotonic() > until:
                raise absent(missing, members, member.world_size, seconds)
            if missing:
                time.sleep(pause)
                pause = min(0.25, pause * 1.5)
    return members


def absent(
    missing: Sequence[int], members: Mapping[int, Member], world_size: int, seconds: float
) -> RunError:
    """RunError KD728: who did not come, who did, and from where."""
    hosts = sorted({member.host for member in members.values()})
    came = f"{ranks_text(sorted(members))} came, from {', '.join(hosts[:MOST_NAMED])}"
    if len(hosts) > MOST_NAMED:
        came += f" and {len(hosts) - MOST_NAMED} other machines"
    return RunError.of(
        "KD728",
        f"{ranks_text(missing)} of {world_size} did not come within {seconds:.0f} s; {came}",
        f"look at what the missing ones say; {PATIENCE}={5 * MEETING_SECONDS:.0f} waits longer",
    )


def _leave_together(store: Store, rank: int, world_size: int) -> None:
    """Keep process 0, which holds the store, until the others have read what they need."""
    store.add("kdcli/read", 1)
    until = time.monotonic() + 10.0
    while rank == 0 and store.add("kdcli/read", 0) < world_size and time.monotonic() < until:
        time.sleep(0.005)


def refuse_shared_gpus(members: Mapping[int, Member]) -> None:
    """Raise RunError KD720 where several processes would use one CUDA device."""
    users: dict[tuple[str, str], list[int]] = {}
    for rank, member in sorted(members.items()):
        if member.gpu is not None:
            users.setdefault((member.host, member.gpu), []).append(rank)
    for (host, gpu), ranks in users.items():
        if len(ranks) > 1:
            devices = len({name for there, name in users if there == host})
            raise RunError.of(
                "KD720",
                f"{ranks_text(ranks)} of {len(members)} would share one CUDA device of {host}: {gpu}",
                f"start no more processes there than it shows devices ({devices}); under Slurm: --gpus-per-task=1",
            )


def unlike(members: Mapping[int, Member]) -> str | None:
    """What differs between processes, in one sentence for each kind of fact; None where all are alike."""
    first = members[min(members)]
    sentences = []
    for name, value in first.facts.items():
        groups: dict[str, list[int]] = {}
        for rank, member in sorted(members.items()):
            groups.setdefault(json.dumps(member.facts.get(name), sort_keys=True), []).append(rank)
        own = json.dumps(value, sort_keys=True)
        for text, ranks in groups.items():
            if text != own:
                sentences.append(_difference(name, value, json.loads(text), groups[own], ranks))
    return "; ".join(sentences) or None


def _difference(name: str, here: Any, there: Any, ranks: Sequence[int], others: Sequence[int]) -> str:
    """One fact that differs: the keys of a mapping with both values, or the values."""
    if not isinstance(here, Mapping) or not isinstance(there, Mapping):
        return f"{name} is {_shown(here)} in {ranks_text(ranks)}, {_shown(there)} in {ranks_text(others)}"
    old, new = (dict(leaves(side, every_list=True)) for side in (here, there))
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    listed = [
        f"`{key}` is {_shown(old.get(key, _ABSENT))} in {ranks_text(ranks)}, "
        f"{_shown(new.get(key, _ABSENT))} in {ranks_text(others)}"
        for key in keys[:MOST_NAMED]
    ]
    more = f", and {len(keys) - MOST_NAMED} more keys" if len(keys) > MOST_NAMED else ""
    return f"{name} differs: {', '.join(listed)}{more}"


_ABSENT = object()


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    return cut_off(json.dumps(value, ensure_ascii=False))


def ranks_text(ranks: Sequence[int]) -> str:
    """Ranks in words, neighbours as a span: `process 3`, `processes 0 to 2, 5`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][-1] + 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    parts = [", ".join(map(str, s)) if len(s) < 3 else f"{s[0]} to {s[-1]}" for s in spans]
    if len(parts) > 2 * MOST_NAMED:
        parts = [*parts[: 2 * MOST_NAMED], f"... ({len(ranks)} in all)"]
    return f"process{'es' if len(ranks) != 1 else ''} {', '.join(parts)}"


SETTLE_SECONDS = 2.0
"""Waits for one another begin at nearly the same time: after so long, all have said theirs."""


class Together:
    """Where the processes wait for each other, so that whoever does not come can be named.

    Nothing is sent while all goes well: a process whose wait has become long says in the store where it waits,
    and the first of those that wait for others names them.
    """

    def __init__(self, store: Store, rank: int, members: Mapping[int, Member]) -> None:
        self.rank, self.members = rank, members
        self._store = store.clone()  # asked in another thread, and one connection serves one
        self._lock = threading.Lock()
        self._place: str | None = None
        self._said = False

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """A `with` block that ends when every process has come to it."""
        outer, self._place = self._place, place
        try:
            with waiting_for_others(), waiting(lambda: self._others(place), shared=False):
                yield
        finally:
            self._place = outer
            self.say(None)

    def say(self, what: str | None, *, together: bool = False) -> None:
        """Tell the other processes what this one waits for; None: for nothing any more."""
        if what is None and not self._said:
            return
        with self._lock:
            if what is None:
                self._store.delete_key(_wait_of(self.rank))
            elif not together or what == self._place:
                self._store.set(_wait_of(self.rank), json.dumps([what, together]))
            self._said = what is not None

    def _others(self, place: str) -> str | None:
        """Who has not come to this place, in words; None where another process says so."""
        self.say(place, together=True)
        time.sleep(SETTLE_SECONDS)
        waits: dict[int, list[Any]] = {}
        with self._lock:
            for rank in self.members:
                if self._store.check([_wait_of(rank)]):
                    waits[rank] = json.loads(self._store.get(_wait_of(rank)))
        return away(place, self.rank, self.members, waits)


def away(
    place: str, rank: int, members: Mapping[int, Member], waits: Mapping[int, Sequence[Any]]
) -> str | None:
    """The processes that keep the others waiting at a place, in words; None where another one is to say so.

    waits: by rank what each of them waits for, and whether for the other processes.
    """
    waiting_ranks = [other for other in members if other in waits and waits[other][1]]
    missing = [other for other in members if other not in waiting_ranks]
    # Where each waits for the others they have lost each other.
    missing = missing or [other for other in members if waits[other][0] != place]
    if not missing or min(waiting_ranks, default=rank) != rank:
        return None
    words = []
    for other in missing[:MOST_NAMED]:
        what = f", which waits for {waits[other][0]}" if other in waits else ""
        words.append(f"process {other} ({members[other].place}){what}")
    more = len(missing) - MOST_NAMED
    return f"{'; '.join(words)}{f'; and {more} more' if more > 0 else ''}, to come to {place}"


def _wait_of(rank: int) -> str:
    return f"kdcli/waits/{rank}"
