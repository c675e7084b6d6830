"""Work on many things on this machine's cores: every worker is a process, and one that dies costs its one thing."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")

FEW = 3
"""So few things are done here and now: a process takes as long to start as they take."""


@dataclass(frozen=True)
class Died:
    """A process was ended while it worked, by the system (for want of memory) or by what it worked on."""


def each(
    work: Callable[[Thing], Result],
    things: Sequence[Thing],
    workers: int | None = None,
    stop: threading.Event | None = None,
) -> Iterator[tuple[Thing, Result | Died]]:
    """Every thing with what `work` makes of it, as they are done.

    work: a function of a module, or a partial of one, for it runs in other processes. workers: how many; default: as
    many as cores, none for few things. stop: when it is set, what has begun is ended and nothing else begun.
    """
    stop = stop or threading.Event()
    count = min(workers if workers is not None else 1 if len(things) <= FEW else cores(), len(things))
    if count <= 1:
        for thing in things:
            if stop.is_set():
                return
            yield thing, work(thing)
        return
    local = threading.local()

    def do(thing: Thing) -> tuple[Thing, Result | Died] | None:
        if stop.is_set():
            return None
        if not hasattr(local, "worker"):
            local.worker = Worker()
        worker: Worker[Thing, Result] = local.worker
        return thing, worker.do(work, thing)

    with ThreadPoolExecutor(count) as threads:
        for future in as_completed([threads.submit(do, thing) for thing in things]):
            found = future.result()
            if found is not None:
                yield found


class Worker(Generic[Thing, Result]):
    """One process that does one thing after the other. Where it dies, another takes its place."""

    def __init__(self) -> None:
        # forkserver: workers start from a process that has imported everything and has no threads.
        name = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else None
        self._context: Any = multiprocessing.get_context(name)
        if name:
            self._context.set_forkserver_preload(["diffadapt.converters.work", "diffadapt.combine"])
        self._pool: ProcessPoolExecutor | None = None

    def do(self, work: Callable[[Thing], Result], thing: Thing) -> Result | Died:
        """What the work makes of a thing, or that the process died of it."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, self._context, _begin)
        try:
            return self._pool.submit(work, thing).result()
        except BrokenProcessPool:
            self._pool.shutdown(wait=False)
            self._pool = None
            return Died()


def _begin() -> None:
    """Set up a process that does nothing else: one thread, for there are as many processes as cores."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which lets what has begun end
    torch.set_num_threads(1)
    gc.freeze()


def cores() -> int:
    """The processors at hand."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
