"""The batches of one side of the data, epoch by epoch.

`start` needs no reading: batches are lists of ids (kdcli.data.order).
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import select
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader

from kdcli.data.batches import (
    ArrayReader,
    BadRecord,
    BatchKey,
    BatchReader,
    Loaded,
    Normalizing,
    Reading,
    marked,
    normalized,
)
from kdcli.data.draws import Ids
from kdcli.data.facts import DataFacts
from kdcli.data.order import Order
from kdcli.data.sources import Batch, BatchSource
from kdcli.disk import process_facts
from kdcli.errors import RunError
from kdcli.failures import doing
from kdcli.waiting import waiting

ENDING = (signal.SIGINT, signal.SIGTERM)
"""The signals that end a run; data workers leave them to the main process."""

LOOK_SECONDS = 5.0
"""How often a data worker looks whether the main process lives, where the system can't tell it."""


class Loader:
    """Batches as a function of (spec, seed, epoch); made by kdcli.data.build.build_loader.

    facts: sizes and names. batch_size: per process. bad_samples: what could not be read so far, each
    once. bad_sample_budget: how many may be, or (a float) which share of all. every_batch: whether a batch without
    a readable sample stops, as in training, where the processes would get out of step. normalizing: what images that
    come as bytes are still to go through, which `to_device` does. notices: plain sentences for
    the user. name: what to call a sample. One epoch runs at a time.
    """

    def __init__(
        self,
        reader: BatchReader,
        order: Order,
        facts: DataFacts,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        views: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        prefetch: bool = False,
        bad_sample_budget: int | float | None = None,
        every_batch: bool = False,
        normalizing: Normalizing | None = None,
        bad_samples: Sequence[BadRecord] = (),
        notices: Sequence[str] = (),
        name: Callable[[int], str] = "sample {}".format,
    ) -> None:
        self._name = name
        self.facts, self.batch_size = facts, batch_size
        self.bad_samples: list[BadRecord] = []
        self.notices = tuple(notices)
        self._reader, self._order, self._views = reader, order, views
        self._rank, self._world_size = rank, world_size
        self._pin = pin_memory
        self._num_workers = 0 if isinstance(reader, ArrayReader) else num_workers
        self._prefetch = prefetch and isinstance(reader, ArrayReader)
        self._budget = bad_sample_budget
        self._every_batch = every_batch
        self._normalizing = normalizing
        self._reading = reader.reading = Reading(self._num_workers)
        self._workers: DataLoader[Loaded] | None = None
        self._keys = _Keys()
        self._at_exit = _Close(self)
        self._length = len(order.batches(0))
        self._note(bad_samples)

    @property
    def workers(self) -> int | None:
        """How many data workers there are; None where they are not kdcli's."""
        return self._num_workers

    @property
    def in_memory(self) -> bool:
        """Whether all images are there already."""
        return isinstance(self._reader, ArrayReader)

    def __len__(self) -> int:
        """Batches an epoch for this process."""
        return self._length

    def batches(self, epoch: int, start: int = 0, every: int = 1) -> Iterator[Batch]:
        """The batches of one epoch from number `start` on, or each `every`-th of these; no others are loaded.

        Where views are counted a batch also says which `view` it shows, of which `ids` (int64 array).

        Raises RunError KD511 at a bad sample (KD512 beyond the budget), KD516 when a worker dies, KD517
        where a transform can't take an image.
        """
        view = epoch % self._views if self._views else epoch
        keys = [
            BatchKey(epoch, view, number * self._world_size + self._rank, ids)
            for number, ids in enumerate(self._order.batches(epoch))
        ][start::every]
        given = 0
        for number, (batch, bad) in enumerate(self._load(keys)):
            self._note(bad)
            if batch:
                if self._views:
                    batch = {**batch, "view": view, "ids": batch["indices"].numpy()}
                given += 1
                yield MappingProxyType(marked(batch, self._normalizing))
            elif self._every_batch:
                raise self._nothing_readable(keys[number].ids)
        # Of several processes one may have a share of few samples; what all have is looked at together.
        if keys and not start and every == 1 and not given and self._world_size == 1:
            raise self._nothing_readable(keys[-1].ids)

    def _nothing_readable(self, ids: Ids) -> RunError:
        """No sample of a batch, nor what stands for it, can be read."""
        last = self.bad_samples[-1] if self.bad_samples else None
        why = "" if last is None else f"; the last is `{last.name}`: {last.reason}"
        return RunError.of(
            "KD512",
            f"of {len(ids)} samples that make a batch none can be read ({len(self.bad_samples)} of "
            f"{self.facts.num_samples} samples so far){why}",
            "is the data's folder the right one, and there?",
        )

    def some(self, ids: Sequence[int]) -> Batch:
        """One batch of these samples in their first view, normalised; empty where they can't be read."""
        batch = self._reader[BatchKey(0, 0, 0, np.array(ids, dtype=np.int64))][0]
        return MappingProxyType(normalized(marked(batch, self._normalizing)))

    @property
    def gives_bytes(self) -> bool:
        """Whether images may come as bytes that `to_device` normalises."""
        return self._normalizing is not None

    def name_of(self, sample: int) -> str:
        """What to call a sample in a message: its file, where it has one."""
        return self._name(sample)

    def close(self) -> None:
        """Ends the data workers; the loader may be used again."""
        if self._workers is not None:
            iterator = getattr(self._workers, "_iterator", None)
            if iterator is not None:
                iterator._shutdown_workers()
                for worker in iterator._workers:
                    # One that hangs in a read would ignore the SIGTERM that torch sends.
                    worker.kill()
            self._workers = None
            atexit.unregister(self._at_exit)

    def _load(self, keys: list[BatchKey]) -> Iterator[Loaded]:
        with closing(self._loaded(keys)) as batches:
            while True:
                with doing("reading the data"):
                    loaded = next(batches, None)
                if loaded is None:
                    return
                yield loaded

    def _loaded(self, keys: list[BatchKey]) -> Generator[Loaded]:
        if self._num_workers:
            yield from self._from_workers(keys)
        elif self._prefetch:
            yield from self._from_thread(keys)
        else:
            for key in keys:
                with waiting(self._slow_sample):
                    loaded = self._here(key)
                yield loaded

    def _here(self, key: BatchKey) -> Loaded:
        batch, bad = self._reader[key]
        if self._pin:
            batch = tree_map_only(torch.Tensor, torch.Tensor.pin_memory, dict(batch))
        return batch, bad

    def _slow_sample(self) -> str | None:
        """What the main process reads, for a notice."""
        sample = self._reading.of(None)
        return None if sample is None else f"`{self._name(sample)}` to be read"

    def _awaited(self, loaded: Any) -> str:
        """The data worker whose batch is to come next, for a notice: its state, and what it reads."""
        worker = loaded._task_info[loaded._rcvd_idx][0]
        process = loaded._workers[worker]
        state = STATES.get("".join(process_facts(process.pid)[:1]), "")
        sample = self._reading.of(worker)
        reads = "" if sample is None else f"; it reads `{self._name(sample)}`"
        return f"data worker {worker} (pid {process.pid}{', ' + state if state else ''}){reads}"

    def _from_thread(self, keys: list[BatchKey], ahead: int = 2) -> Iterator[Loaded]:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="kdcli-data") as pool:
            waiting = deque(pool.submit(self._here, key) for key in keys[:ahead])
            try:
                for key in keys[ahead:]:
                    done = waiting.popleft()
                    waiting.append(pool.submit(self._here, key))
                    yield done.result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _from_workers(self, keys: list[BatchKey]) -> Iterator[Loaded]:
        start = self._workers is None
        if self._workers is None:
            self._workers = DataLoader(
                self._reader,  # type: ignore[arg-type]
                batch_size=None,
                sampler=self._keys,
                num_workers=self._num_workers,
                collate_fn=_as_it_is,
                pin_memory=self._pin,
                worker_init_fn=_InWorker(os.getpid()),
                persistent_workers=True,
                # Its own, so that the main generator is drawn from as often as without workers.
                generator=torch.Generator().manual_seed(0),
            )
        self._keys.keys = keys
        with starting_workers():
            loaded = iter(self._workers)
        waited = _each_told(loaded, lambda: self._awaited(loaded))
        if start:
            # Before torch's and multiprocessing's own, which wait for workers that nobody has told to end.
            atexit.register(self._at_exit)
        try:
            yield from waited
        except (RuntimeError, EOFError, ConnectionError) as reason:
            # What the user's code raises there has the worker's traceback in its text.
            handed_on = "Original Traceback" in str(reason)
            if handed_on or (isinstance(reason, RuntimeError) and "DataLoader worker" not in str(reason)):
                raise
            self.close()
            raise RunError.of(
                "KD516",
                "a data worker died",
                "often too little memory: lower `dataloader.kwargs.num_workers` or `batch_size`",
            ) from reason

    def _note(self, bad: Sequence[BadRecord]) -> None:
        for record in bad:
            if not record.fits:
                raise RunError.of("KD517", f"`{record.name}` does not fit the transforms: {record.reason}")
            if self._budget is None:
                raise RunError.of(
                    "KD511",
                    f"`{record.name}` can't be read: {record.reason}",
                    "mend or remove it, or set `on_bad_sample: skip` in the dataloader's kwargs",
                )
            if all(known.sample != record.sample for known in self.bad_samples):
                self.bad_samples.append(record)
            total = self.facts.num_samples
            if len(self.bad_samples) > allowed(self._budget, total):
                raise RunError.of(
                    "KD512",
                    f"{len(self.bad_samples)} samples can't be read, more than `bad_sample_budget` "
                    f"allows ({budget_text(self._budget, total)}); the last is `{record.name}`: {record.reason}",
                    "mend the data, or raise `bad_sample_budget`",
                )


def allowed(budget: int | float, samples: int | None) -> int:
    """How many samples may be bad: the budget, or (a float) that share of all, rounded down."""
    return int(budget * (samples or 0) + 1e-9) if isinstance(budget, float) else budget


def budget_text(budget: int | float, samples: int | None) -> str:
    """The budget in a message: `20`, or `1% of 5,000 = 50`."""
    if isinstance(budget, float):
        return f"{100 * budget:g}% of {samples or 0} = {allowed(budget, samples)}"
    return str(budget)


class GivenLoader(Loader):
    """The batches of a BatchSource, epoch by epoch."""

    workers, in_memory = None, False

    def __init__(self, source: BatchSource, seed: int = 0) -> None:
        self.source, self.seed = source, seed
        self.facts, self.batch_size, self.notices = source.facts, source.batch_size, source.notices
        self.bad_samples: list[BadRecord] = []
        self._normalizing = None

    def __len__(self) -> int:
        return len(self.source)

    def batches(self, epoch: int, start: int = 0, every: int = 1) -> Iterator[Batch]:
        """The batches of one pass, from number `start` on, or each `every`-th of these."""
        seen = 0
        with doing("reading the given data"):
            for number, given in enumerate(islice(self.source.epoch(self.seed, epoch), len(self.source))):
                batch = self.source.batch(given, seen)
                seen += len(batch["image"])
                if number >= start and (number - start) % every == 0:
                    yield batch

    def some(self, ids: Sequence[int]) -> Batch:
        """Nothing: single samples can't be asked for."""
        return MappingProxyType({})

    def name_of(self, sample: int) -> str:
        """What to call one of the samples."""
        return self.source.name(sample)

    def close(self) -> None:
        """Nothing is open."""


def _each_told(loaded: Iterator[Loaded], what: Callable[[], str | None]) -> Iterator[Loaded]:
    """The items of an iterator; a notice where one does not come."""
    while True:
        with waiting(what):
            try:
                item = next(loaded)
            except StopIteration:
                return
        yield item


STATES = {
    "T": "stopped by a signal",
    "D": "waiting for a disk or a network share",
    "Z": "ended",
    "S": "asleep",
    "R": "at work",
}
"""States of a process as Linux names them."""


class _Keys:
    """The keys of the epoch that runs; the data workers' sampler."""

    def __init__(self) -> None:
        self.keys: list[BatchKey] = []

    def __iter__(self) -> Iterator[BatchKey]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


@contextmanager
def starting_workers() -> Iterator[None]:
    """While data workers start: no signal reaches them before they ignore it.

    torch's SIGCHLD handler is undone: it raises wherever the main thread is, in a save perhaps. A dead
    worker is noticed without it, by the next batch that does not come.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    on_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    others = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        # Those before the one that could not start (too many open files) wait for ever, and heed no SIGTERM.
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        raise
    finally:
        if on_main_thread:
            signal.signal(signal.SIGCHLD, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class _Close:
    """Closes a loader that is still there when Python ends."""

    def __init__(self, loader: Loader) -> None:
        self.loader = weakref.ref(loader)

    def __call__(self) -> None:
        loader = self.loader()
        if loader is not None:
            loader.close()


def _as_it_is(loaded: Any) -> Any:
    return loaded


class _InWorker:
    """A data worker outlives Ctrl-C and SIGTERM: the main process decides when it ends, and takes it along.

    torch ends workers whose parent is gone. Where a server forks them (multiprocessing's `forkserver`) the parent is
    that server, which lives as long as they do: after a SIGKILL of the main process all would stay for ever.
    """

    def __init__(self, main: int) -> None:
        self.main = main

    def __call__(self, worker: int) -> None:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        torch.set_num_threads(1)
        if os.getppid() != self.main:
            threading.Thread(target=self._end_with_main, name="kdcli-main-lives", daemon=True).start()

    def _end_with_main(self) -> None:
        try:
            ended = select.poll()
            ended.register(os.pidfd_open(self.main), select.POLLIN)
            ended.poll()
        except ProcessLookupError:
            pass
        except (AttributeError, OSError):  # an old kernel, or no Linux
            with suppress(ProcessLookupError):
                while True:
                    os.kill(self.main, 0)
                    time.sleep(LOOK_SECONDS)
        os._exit(1)
