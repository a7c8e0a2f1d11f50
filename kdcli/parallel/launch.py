"""Several processes on this machine, started and watched by torch's elastic launcher."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.errors import RunError, UsageError
from kdcli.parallel.interrupts import at_once, heeded
from kdcli.parallel.pulse import keep_pulse, pulse_path
from kdcli.parallel.watchdog import Watchdog

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SHUTDOWN_SECONDS = 600
"""How long a signal lets the workers finish their step and save, before they are killed."""

LAUNCHER = "KDCLI_LAUNCHER"
"""Set for workers: the launcher's process id."""

AGAIN = "KDCLI_AGAIN"
"""Set for workers: the command line that continues the run."""

MARKS = "KDCLI_MARKS"
"""Set for workers: a folder of their launcher, where they leave marks for each other and for those after them."""

PARTS = "KDCLI_GPU_PARTS"
"""Set for workers: the parts of GPUs (MIG) of all of them, with commas."""

NAMES = ("GPU-", "MIG-")
"""How the name of a GPU, or of a part of one, begins in CUDA_VISIBLE_DEVICES; `nvidia-smi -L` lists them."""

PEER_DIED = "KD722"

STEP_MARKS = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NODELIST", "SLURM_LAUNCH_NODE_IPADDR")
"""Variables that `srun` sets for its tasks and that a batch script has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to start. processes: on this machine; the other fields mean what torchrun's do."""

    processes: int
    nnodes: int = 1
    node_rank: int | None = None
    rdzv_endpoint: str | None = None
    max_restarts: int = 0


def is_worker() -> bool:
    """Whether torchrun, Slurm or kdcli's launcher has started this process as one of many."""
    environment = os.environ
    return ("RANK" in environment and "WORLD_SIZE" in environment) or in_slurm_step()


def in_slurm_step() -> bool:
    """Whether `srun` has started several tasks and this is one; a batch script itself is none.

    Raises RunError KD731 in one of several tasks where how many there are is not known: each would train by itself
    in the same folder.
    """
    return "SLURM_PROCID" in os.environ and slurm_tasks() > 1


def slurm_tasks() -> int:
    """How many tasks of a Slurm step this one is of; 1 outside a step."""
    slurm = os.environ
    rank = slurm.get("SLURM_PROCID", "0")
    # In a batch script SLURM_NTASKS says what the job may start, and nothing of a step is set.
    in_step = rank != "0" or any(name in slurm for name in STEP_MARKS)
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS") if in_step else ("SLURM_STEP_NUM_TASKS",)
    counts = [slurm[name] for name in names if slurm.get(name, "").isdigit()]
    tasks = int(counts[0]) if counts else 1
    if rank.isdigit() and int(rank) >= tasks and "RANK" not in slurm:
        raise RunError.of(
            "KD731",
            f"this is task {rank} of a Slurm step, and how many tasks there are is not known: "
            + (f"{names[0]} says {tasks}" if counts else " and ".join(names[:2]) + " are not set"),
            "hand Slurm's variables on to the program (in a container too), or set RANK, WORLD_SIZE, MASTER_ADDR and"
            " MASTER_PORT; for a single process: srun --ntasks=1",
        )
    return tasks


def has_own_gpus() -> bool:
    """Whether Slurm shows each task of this step GPUs of its own, the first of which is number 0.

    So do `--gpus-per-task`, `--ntasks-per-gpu` and a binding to one GPU each, unless `--gpu-bind=none` leaves all
    of a node's visible to every task.
    """
    slurm = os.environ
    if not in_slurm_step():
        return False
    binding = slurm.get("SLURM_GPU_BIND", slurm.get("SLURM_GPU_BIND_TYPE", ""))
    if "none" in binding:
        return False
    asked = "SLURM_GPUS_PER_TASK" in slurm or "gpu" in slurm.get("SLURM_TRES_PER_TASK", "")
    return asked or "SLURM_NTASKS_PER_GPU" in slurm or "single" in binding or "per_task" in binding


def device_index(local_rank: int, visible: int) -> int:
    """Which of its visible CUDA devices a process takes; several that take one tell so when they meet.

    Raises RunError KD720 where there are fewer devices than processes.
    """
    if has_own_gpus() or _part_of_its_own() is not None:
        local_rank = 0
    elif in_slurm_step() and visible:
        # Devices that Slurm has bound to one task are all that it sees, and not every binding is told.
        local_rank %= visible
    if local_rank < visible:
        return local_rank
    raise no_such_gpus(local_rank + 1, visible)


def visible_names() -> list[str] | None:
    """The devices that CUDA_VISIBLE_DEVICES lists, up to the first that hides the rest; None where all are visible."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    return list(itertools.takewhile(lambda name: name[:1].isdigit() or name.startswith(NAMES), names))


def visible_gpus() -> int:
    """The number of CUDA devices that may be used, as the driver counts them (NVML): CUDA itself is not started."""
    import torch

    names = visible_names()
    if names is not None and any(name.startswith("MIG-") for name in names):
        # CUDA shows a process one part of a GPU alone: each of several processes is given its own.
        return len(names) if torch.cuda.device_count() else 0
    return torch.cuda.device_count()


def no_such_gpus(wanted: int, visible: int) -> RunError:
    """RunError KD720: more CUDA devices were asked for than there are."""
    return RunError.of(
        "KD720",
        f"{wanted} CUDA device(s) asked for, {visible} visible on this machine",
        "run on the CPU with `--device cpu`" if visible == 0 else f"use `--gpus {visible}` or `--device cpu`",
    )


def _part_of_its_own() -> str | None:
    """The part of a GPU (MIG) that this worker takes of several: CUDA shows a process one part alone."""
    parts = os.environ.get(PARTS)
    number = int(os.environ.get("LOCAL_RANK", "0"))
    return None if parts is None or not is_worker() else parts.split(",")[number]


def plan_launch(
    *,
    gpus: str | None = None,
    device: str | None = None,
    nproc: int | None = None,
    nnodes: int = 1,
    node_rank: int | None = None,
    rdzv_endpoint: str | None = None,
    max_restarts: int = 0,
) -> Launch | None:
    """What these options ask to start; None where this process does all the work or is a worker itself.

    gpus: a number, or device numbers with commas (`2,` is device 2), which expose_gpus has made the only visible ones.
    Raises UsageError for options that contradict each other, RunError KD720 for GPUs that are not there.
    """
    if is_worker():
        return None
    if gpus is not None and (device == "cpu" or nproc is not None):
        raise UsageError.of(
            "`--gpus` and " + ("`--device cpu`" if device == "cpu" else "`--nproc`") + " exclude each other"
        )
    if nnodes > 1 and rdzv_endpoint is None:
        raise UsageError.of("`--nnodes` needs `--rdzv-endpoint HOST:PORT`, the same on every machine")
    if nnodes < 1 or max_restarts < 0 or (nproc is not None and nproc < 1):
        raise UsageError.of("`--nnodes` and `--nproc` count from 1, `--max-restarts` from 0")
    if node_rank is not None and not 0 <= node_rank < nnodes:
        raise UsageError.of(f"`--node-rank` is a number from 0 to {nnodes - 1}")
    if gpus is not None:
        processes = _count_gpus(gpus)
    else:
        processes = nproc or 1
        if device == "cuda":
            _gpus_are_there(processes)
    if processes == 1 and nnodes == 1 and max_restarts == 0:
        return None
    return Launch(
        processes=processes,
        nnodes=nnodes,
        node_rank=node_rank,
        rdzv_endpoint=rdzv_endpoint,
        max_restarts=max_restarts,
    )


def expose_gpus(text: str | None) -> None:
    """Make the GPUs of `--gpus 0,2` the only visible ones; a plain number, or None, leaves all visible.

    CUDA reads CUDA_VISIBLE_DEVICES once, when it is first asked anything: to be called before that. A worker's
    launcher has done it. Raises UsageError for a text that is neither a number nor a list, RunError KD720 for
    a device that is not among the visible ones.
    """
    if is_worker():
        part = _part_of_its_own()
        if part is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = part
        return
    chosen = None if text is None else _listed(text)
    if chosen is None:
        return
    visible = visible_names()
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(_visible_name(one, visible) for one in chosen)


def _visible_name(chosen: str, visible: Sequence[str] | None) -> str:
    """The name of a listed device in CUDA_VISIBLE_DEVICES. chosen: its place among the visible ones, or its name."""
    if visible is None:
        return chosen
    if chosen.isdigit():
        if int(chosen) < len(visible):
            return visible[int(chosen)]
    elif not any(name.startswith(NAMES) for name in visible):
        # Those visible are given by number, and only the driver knows their names.
        if visible:
            return chosen
    else:
        # A name may be cut as long as it is clear.
        fitting = [name for name in visible if name.startswith(chosen) or chosen.startswith(name)]
        if len(fitting) == 1:
            return fitting[0]
    raise _no_such_gpu(chosen)


def _listed(text: str) -> list[str] | None:
    """The device numbers or names of a comma-separated list; None for a plain number of devices."""
    parts = [part.strip() for part in text.split(",")]
    chosen = [part for part in parts if part]
    numbers = all(part.isdigit() for part in chosen)
    if not parts[0] or not (numbers or all(part.startswith(NAMES) for part in chosen)):
        raise UsageError.of(
            f"`--gpus {text}` is neither a number nor a list of devices",
            "say 8, or 0,2; or names that `nvidia-smi -L` lists: GPU-..., or MIG-...",
        )
    if len(parts) == 1 and numbers:
        if int(chosen[0]) < 1:
            raise UsageError.of("`--gpus` counts from 1", "for no GPU at all: `--device cpu`")
        return None
    if len({int(part) if numbers else part for part in chosen}) < len(chosen):
        raise UsageError.of(f"`--gpus {text}` names a device twice")
    return chosen


def _count_gpus(text: str) -> int:
    """The number of processes that `--gpus` asks for; raises RunError KD720 where GPUs are missing."""
    chosen = _listed(text)
    if chosen is None:
        return _gpus_are_there(int(text))
    # Those listed are the visible ones now; CUDA counts them up to the first that it does not find.
    visible = visible_gpus()
    if visible < len(chosen):
        raise _no_such_gpu(chosen[visible])
    return len(chosen)


def _gpus_are_there(count: int) -> int:
    visible = visible_gpus()
    if count > visible:
        raise no_such_gpus(count, visible)
    return count


def _no_such_gpu(chosen: str) -> RunError:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    among = "on this machine" if visible is None else f"among those of CUDA_VISIBLE_DEVICES={visible}"
    if not chosen.isdigit():
        help = "`nvidia-smi -L` lists the names; a part of one must fit one device alone; on the CPU: `--device cpu`"
        return RunError.of("KD720", f"there is no CUDA device {chosen} {among}", help)
    return RunError.of(
        "KD720",
        f"there is no CUDA device {chosen} {among}",
        "`--gpus` counts from 0, among those of CUDA_VISIBLE_DEVICES where it is set; on the CPU: `--device cpu`",
    )


def launch(plan: Launch, arguments: Sequence[str], *, again: str) -> None:
    """Run `kdcli <arguments>` in every process and wait for all; again: the command that continues.

    Leaves by SystemExit: with a worker's exit code where one failed (its error is printed), with 128 + the
    signal's number after a signal, when the workers have saved.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ |= {LAUNCHER: str(os.getpid()), AGAIN: again}
    parts = visible_names() or []
    if plan.processes > 1 and any(name.startswith("MIG-") for name in parts):
        os.environ[PARTS] = ",".join(parts)
    # The launcher's own store outlives the workers: after a restart they would meet the dead ones in it.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // plan.processes)))
    alone = plan.nnodes == 1 and plan.rdzv_endpoint is None
    static = plan.node_rank is not None
    with tempfile.TemporaryDirectory(prefix="kdcli-") as folder:
        config = LaunchConfig(
            min_nodes=plan.nnodes,
            max_nodes=plan.nnodes,
            nproc_per_node=plan.processes,
            run_id=str(uuid.uuid4()) if alone else "kdcli",
            rdzv_backend="static" if static else "c10d",
            rdzv_endpoint="localhost:0" if alone and not static else plan.rdzv_endpoint or "localhost:29400",
            rdzv_configs={"rank": plan.node_rank} if static else {},
            local_addr="localhost" if alone else None,
            max_restarts=plan.max_restarts,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle=",".join(number.name for number in heeded()),
            **_patience(LaunchConfig),
        )
        os.environ[MARKS] = folder
        pulses = [pulse_path(Path(folder), rank) for rank in range(plan.processes)]
        watchdog = Watchdog(pulses, alone=plan.nnodes == 1)
        try:
            with watchdog.watching():
                elastic_launch(config, sys.executable)(*_python_flags(), "-m", "kdcli.cli", *arguments)
        except ChildFailedError as failed:
            ended = {state.pid for state in watchdog.killed}
            raise SystemExit(_tell(list(failed.failures.values()), ended)) from None
        except SignalException as stopped:
            if watchdog.killed:
                raise at_once(stopped.sigval, again) from None
            raise SystemExit(128 + stopped.sigval) from None


def _patience(config: type) -> dict[str, Any]:
    """SHUTDOWN_SECONDS as the launcher's setting; torch before 2.12 has none, and gives workers 30 seconds."""
    known = {field.name for field in fields(config)}
    return {"shutdown_timeout": SHUTDOWN_SECONDS} if "shutdown_timeout" in known else {}


def _python_flags() -> list[str]:
    """Flags for the workers' Python: a console script must not put the working directory on the path."""
    return [] if sys.path and sys.path[0] in ("", os.getcwd()) else ["-P"]


def _tell(failures: Sequence[ProcessFailure], ended: Collection[int] = ()) -> int:
    """Print why the first worker failed, return its exit code; raises RunError KD723 where it was killed.

    ended: the process ids of those that the watchdog has killed.
    """
    # One that the launcher stopped fell to SIGTERM; one that lost another tells so, where nobody tells more.
    reported = [failure for failure in failures if Path(failure.error_file).is_file()]
    first = [failure for failure in reported if not failure.error_file_data["lost_another"]]
    killed = [
        failure
        for failure in failures
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM and failure.pid not in ended
    ]
    failure = min(first or killed or reported or failures, key=lambda f: f.timestamp)
    if failure in reported:
        sys.stderr.write(str(failure.error_file_data["message"]))
    elif failure.exitcode < 0:
        why = " (often too little memory)" if failure.exitcode == -signal.SIGKILL else ""
        raise RunError.of(
            "KD723",
            f"process {failure.local_rank} of this machine was killed by {failure.signal_name()}{why}",
            "continue with `--resume`; `--max-restarts N` does so by itself",
        )
    # One that had told its error may have been stopped on its way out.
    return max(failure.exitcode, 1)


def finish_telling() -> None:
    """In a failing worker: make the launcher wait with stopping the others until its error is delivered."""
    if LAUNCHER in os.environ and is_worker():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def tell_launcher(text: str, codes: Sequence[str] = ()) -> bool:
    """Hand an error to the launcher, which prints one of all; False where this process must print it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if LAUNCHER not in os.environ or path is None:
        return False
    lost_another = PEER_DIED in codes
    if restarts() < int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        # The launcher will not ask for the reason, it starts all again.
        return lost_another or not _first_to_leave(f"told_{restarts()}")
    content = {"message": text, "timestamp": int(time.time()), "lost_another": lost_another}
    try:
        Path(path).write_text(json.dumps(content), encoding="utf-8")
    except OSError:
        return False
    return True


def restarts() -> int:
    """How often the launcher has restarted the processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def started_again() -> bool:
    """Whether a process of this rank has run under the same launcher before; ask once.

    torch's own count leaves out restarts that another machine has asked for.
    """
    if MARKS not in os.environ or not is_worker():
        return restarts() > 0
    return not _first_to_leave(f"started_{os.environ.get('LOCAL_RANK', '0')}")


def _first_to_leave(mark: str) -> bool:
    try:
        Path(os.environ[MARKS], mark).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def continue_command() -> str | None:
    """In a worker: the command that continues the run, as the launcher passed it."""
    return os.environ.get(AGAIN) if LAUNCHER in os.environ and is_worker() else None


def follow_launcher() -> None:
    """In a worker: keep a pulse for the launcher, and stop, as after SIGTERM, when it is gone."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or not is_worker():
        return
    if MARKS in os.environ:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        keep_pulse(pulse_path(Path(os.environ[MARKS]), local_rank), int(os.environ["RANK"]))

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="kdcli-launcher", daemon=True).start()
