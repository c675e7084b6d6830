"""The engine of this machine: the files of a batch in processes of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from diffadapt.converters.jobs import Job
from diffadapt.converters.plan import Plan
from diffadapt.converters.work import Record, convert, failed
from diffadapt.converters.workers import Died, each


def run(
    jobs: Sequence[Job],
    plan: Plan,
    *,
    known: Mapping[str, Record],
    overwrite: bool = False,
    workers: int | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Record]:
    """The records of all jobs, as they are done. The arguments are those of `work.convert` and `workers.each`."""
    tasks = [(job, known.get(job.name)) for job in jobs]
    for (job, _), record in each(partial(_one, plan=plan, overwrite=overwrite), tasks, workers, stop):
        if isinstance(record, Died):
            said = f"{job.name}: its process ended, probably for want of memory. The others go on."
            record = failed(job, plan, "WorkerDied", said)
        yield record


def _one(task: tuple[Job, Record | None], plan: Plan, overwrite: bool) -> Record:
    job, known = task
    return convert(job, plan, known=known, overwrite=overwrite)
