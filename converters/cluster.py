"""The engine of many machines: the files of a batch as tasks of Ray, on a cluster or on this machine."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from diffadapt.converters.jobs import Job
from diffadapt.converters.plan import Plan
from diffadapt.converters.work import DONE, Record, convert, failed
from diffadapt.converters.workers import cores
from diffadapt.errors import ConvertError
from diffadapt.io.safetensors_writer import PART

ADDRESS = "RAY_ADDRESS"
"""The environment's variable that names a cluster, for all that uses Ray."""

RETRIES = 2
"""How often a file is taken up again whose worker died. The next one to die of it has most likely died of the file."""

AHEAD = 2
"""Tasks in flight for each processor: one that runs, and one that waits so that the processor never does. More would
only be more to take back when the batch is stopped."""

_POLL, _LOOK = 0.2, 1.0  # seconds until a stop is seen; and until the cluster is looked at again
_MIB = 1 << 20
# A source's tensors, what a plan makes of them (another type, a product that is cut to a smaller rank), and the result
# that is written or read again: each is about as large as the source. The rest is Python and PyTorch before any file.
_COPIES, _ALWAYS = 3, 512 * _MIB
# Requests come in steps: a worker is passed on at once only between tasks that ask for the same.
_STEP = 256 * _MIB
_STORE = 128 * _MIB  # for objects of Ray's: ours are small, and by default they get nearly a third of the memory

Stamp: TypeAlias = "tuple[int, int] | None"


class Task(NamedTuple):
    """What a worker is told. before: the result's stamp when the task was begun. folder: what paths are relative to."""

    work: Callable[..., Record]
    job: Job
    plan: Plan
    known: Record | None
    overwrite: bool
    before: Stamp
    folder: str


def run(
    jobs: Sequence[Job],
    plan: Plan,
    *,
    known: Mapping[str, Record],
    overwrite: bool = False,
    workers: int | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Record]:
    """The records of all jobs, as they are done. The arguments are those of `local.run`.

    The cluster is that of a Ray the caller has initialised, else that of `RAY_ADDRESS`, else one on this machine that
    ends with the batch; all its machines see the files at the same paths. workers: how many files at once; default: as
    many as processors. A file is tried anew where its worker dies, and a result that the dead one had finished is kept.
    Raises ConvertError where Ray is not installed or the cluster is not to be had.
    """
    if not jobs:
        return
    ray = imported()
    stop = stop or threading.Event()
    with connected(ray, workers) as limit:
        left = deque(jobs)
        flight = Flight(ray, plan, known, overwrite, limit)
        try:
            while True:
                if stop.is_set():
                    left.clear()
                    flight.cancel()
                flight.fill(left)
                if not flight.jobs:
                    return
                yield from flight.ended()
        finally:
            flight.cancel()
            flight.wait()
            sweep(jobs)


def imported() -> Any:
    """The module `ray`. Raises ConvertError where it is not installed."""
    # Before the import, which reads them. It reports home where nobody says no; and a task that the memory did not hold
    # is tried anew for ever where nobody says how often.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
    try:
        import ray
    except ImportError as error:
        raise ConvertError('--engine ray needs Ray, which is not installed: pip install "diffadapt[ray]".') from error
    return ray


@contextmanager
def connected(ray: Any, workers: int | None = None) -> Iterator[int | None]:
    """A cluster for a while: what the caller has connected to stays so, and only what is begun here ends here.

    workers: how many files at once. One that is begun on this machine has so many processors; of any other, that is the
    limit of tasks in flight, which is what is given. Raises ConvertError where no cluster is to be had.
    """
    if ray.is_initialized():
        yield workers
        return
    address = os.environ.get(ADDRESS) or "local"
    options: dict[str, Any] = {}
    if address == "local":
        options = {"num_cpus": workers or cores(), "include_dashboard": False, "object_store_memory": _STORE}
    try:
        _knock(address)
        # Ray's workers import from the working directory before all else, and it may hold anything that was downloaded.
        with chdir(Path(ray.__file__).parents[1]):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # Ray raises that itself where it does not come up
        where = "Ray does not start on this machine" if address == "local" else f"No cluster at {ADDRESS}={address}"
        why = str(error).strip().partition("\n")[0]
        raise ConvertError(f"{where} ({why}). --engine local does without.") from error
    try:
        yield None if address == "local" else workers
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """See whether anybody is at an address. Raises OSError where not; Ray itself tries it for a quarter of an hour."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.hostname and parts.port:
        socket.create_connection((parts.hostname, parts.port), timeout=10).close()


class Flight:
    """The tasks that Ray has been given and has not answered."""

    def __init__(
        self, ray: Any, plan: Plan, known: Mapping[str, Record], overwrite: bool, limit: int | None = None
    ) -> None:
        """limit: of tasks; default: `AHEAD` for each processor."""
        self.ray, self.plan, self.known, self.overwrite, self.limit = ray, plan, known, overwrite, limit
        self.jobs: dict[Any, Job] = {}
        self._cancelled, self._folder = False, os.getcwd()
        self._looked, self._room, self._largest = -_LOOK, 1, 0
        # What `convert` raises is a fault of ours, and would be one again: only a worker's death is tried anew.
        self._task = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=False)(_do)

    def fill(self, left: deque[Job]) -> None:
        """Begin what there is room for."""
        if left and time.monotonic() - self._looked > _LOOK:
            self._look()
        while left and len(self.jobs) < self._room:
            self._begin(left.popleft())

    def _look(self) -> None:
        """See how much the cluster can do: machines come and go."""
        self._looked = time.monotonic()
        machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        ahead = AHEAD * int(sum(machine.get("CPU", 0) for machine in machines))
        self._room = max(1, ahead if self.limit is None else min(self.limit, ahead))
        self._largest = int(max((machine.get("memory", 0) for machine in machines), default=0))

    def _begin(self, job: Job) -> None:
        # A task that asks for more than any machine has would wait for ever; so it gets one of them to itself.
        memory = min(needed(job), self._largest or needed(job))
        known, before = self.known.get(job.name), stamp(job.file)
        task = Task(convert, job, self.plan, known, self.overwrite, before, self._folder)
        self.jobs[self._task.options(memory=memory).remote(task)] = job

    def ended(self) -> Iterator[Record]:
        """The record of a file that is done, where one is within a fifth of a second."""
        done, _ = self.ray.wait(list(self.jobs), num_returns=1, timeout=_POLL)
        for task in done:
            record = self._record(task, self.jobs.pop(task))
            if record is not None:
                yield record

    def _record(self, task: Any, job: Job) -> Record | None:
        """What a task gave; None where it was taken back before it began."""
        errors = self.ray.exceptions
        try:
            record: Record = self.ray.get(task)
        except errors.TaskCancelledError as error:
            return None if self._cancelled else self._refused(job, error)
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError):
            said = f"{job.name}: its process ended again and again, probably for want of memory. The others go on."
            return failed(job, self.plan, "WorkerDied", said)
        except errors.RayError as error:
            return self._refused(job, error)
        return record

    def _refused(self, job: Job, error: Exception) -> Record:
        last = str(error).strip().rpartition("\n")[2]
        said = f"{job.name}: the cluster did not do it ({last}). Is this diffadapt installed on all its machines?"
        return failed(job, self.plan, "ClusterError", said)

    def cancel(self) -> None:
        """Take back what has not begun; what has does not hear of it, see `_do`."""
        if not self._cancelled:
            self._cancelled = True
            for task in self.jobs:
                self.ray.cancel(task, force=False)

    def wait(self) -> None:
        """Wait until nothing is in flight."""
        if self.jobs:
            self.ray.wait(list(self.jobs), num_returns=len(self.jobs))
            self.jobs.clear()


def needed(job: Job) -> int:
    """The bytes of memory that a file's task asks for. What is elsewhere has no size yet, and counts as small."""
    size = 0
    with suppress(OSError):
        size = Path(job.source).stat().st_size
    return -(-(_COPIES * size + _ALWAYS) // _STEP) * _STEP


def stamp(file: Path) -> Stamp:
    """What is another when a file is written anew: bytes and nanoseconds; None where it is not there."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns


def sweep(jobs: Sequence[Job]) -> None:
    """Remove what workers that died left half written: the batch that has their files done will not look again."""
    names: defaultdict[Path, set[str]] = defaultdict(set)
    for job in jobs:
        names[job.file.parent].add(job.file.name[:100])
    for folder, ours in names.items():
        for path in folder.glob(f".*{PART}"):
            found = re.fullmatch(rf"\.(.+)\.[0-9a-f]{{12}}{re.escape(PART)}", path.name, re.DOTALL)
            if found is not None and found[1] in ours:
                path.unlink(missing_ok=True)


def _do(task: Task) -> Record:
    """Do one file, in a worker.

    Where it is tried anew, the one that died may have finished: `convert` knows a result of this plan and source and
    keeps it. With `overwrite` it would not look, so that is only for the result which was there at the beginning.
    """
    known, overwrite = task.known, task.overwrite
    # Ray's workers are where Ray was started, not where the batch was. And Ray takes tasks back by an interrupt, which
    # is not for one that has begun.
    with _uninterrupted(), chdir(task.folder) if os.path.isdir(task.folder) else nullcontext():
        now = stamp(task.job.file)
        if overwrite and now is not None and now != task.before:
            known = Record(task.job.name, task.job.out, DONE, task.plan.key, bytes=now[0])
            overwrite = False
        return task.work(task.job, task.plan, known=known, overwrite=overwrite)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
