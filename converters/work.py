"""One file: read, changed, named anew, written, looked at again. The unit of work of every engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

import diffadapt
from diffadapt.adapter import Adapter
from diffadapt.converters.change import cast, changed
from diffadapt.converters.jobs import SUFFIX, Job
from diffadapt.converters.plan import Plan
from diffadapt.converters.provenance import is_made_by, largest_error, provenance, signed
from diffadapt.converters.renaming import Renamings
from diffadapt.converters.result import Made, left_out, told
from diffadapt.converters.sources import here, state
from diffadapt.errors import ConvertError, DiffAdaptError, SourceError
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.io.mapped import MappedTensors
from diffadapt.io.safetensors import open_binary
from diffadapt.io.safetensors_writer import Copied, lay_out, placed_in, write_layout
from diffadapt.io.source import read_checkpoint
from diffadapt.reading import read_adapter
from diffadapt.writing import compose, write_with

DONE, KEPT, FAILED = "done", "kept", "failed"
"""Written now; there already, from the same source by the same plan; not to be had."""

_EXACT = {None: 0.0, "fp32": 1e-6, "fp16": 1e-3, "bf16": 4e-3}
"""The largest relative error of a tensor that the rounding to a type explains (half a unit in the last place is 5e-4
for fp16, 2e-3 for bf16): more means that it cannot hold the numbers."""


@dataclass(frozen=True)
class Record:
    """What became of one file: a line of the report.

    blake3, size, modified: the source's hash (64 hex) and its `sources.state`. left_out: keys of the source -> why they
    are not in the result. losses: the largest relative Frobenius error of any layer that smaller ranks cost.
    error: that of the tensors when read again, where that was asked for.
    """

    source: str
    out: str
    status: str
    plan: str
    version: str = diffadapt.__version__
    blake3: str = ""
    size: int = 0
    modified: int = 0
    bytes: int = 0
    seconds: float = 0.0
    dialect: str = ""
    family: str | None = None
    algorithms: Mapping[str, int] = field(default_factory=dict)
    keys: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)
    losses: float = 0.0
    error: float | None = None
    kind: str = ""
    message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain types, without what is empty."""
        return {name: value for name, value in asdict(self).items() if value not in ("", {}, None) or name == "source"}

    @property
    def file(self) -> Path:
        """The file of weights that was written."""
        return Path(Job(self.source, self.out).file)


def convert(job: Job, plan: Plan, *, known: Record | None = None, overwrite: bool = False) -> Record:
    """Do one file; whatever is wrong with it is in the record, not raised.

    known: what a run before this one wrote down of it. overwrite: also what is there and was not made of this source
    by this plan.
    """
    start = time.perf_counter()
    try:
        with here(job.source) as source:
            record = _convert(job, source, plan, known, overwrite)
    except (DiffAdaptError, OSError) as error:
        record = failed(job, plan, type(error).__name__, str(error))
    except MemoryError:
        record = failed(job, plan, "MemoryError", f"{job.name}: there is not enough memory for it.")
    except Exception as error:  # noqa: BLE001  a fault of ours must not stop the other thousands
        what = f"{type(error).__name__}: {error}"
        record = failed(job, plan, "InternalError", f"{job.name}: {what}. This is a bug; please report the file.")
    return replace(record, seconds=round(time.perf_counter() - start, 4))


def failed(job: Job, plan: Plan, kind: str, message: str) -> Record:
    """The record of a file that could not be converted."""
    return Record(job.name, job.out, FAILED, plan.key, kind=kind, message=message)


def _convert(job: Job, source: Path, plan: Plan, known: Record | None, overwrite: bool) -> Record:
    """source: the job's, here."""
    size, modified = state(job.source)
    folder = plan.to == "peft" and Path(job.out).suffix != SUFFIX
    found = _RENAMINGS.made(source, plan, folder) or read_checkpoint(source)
    hashing = Hashing(source)
    try:
        made = found if isinstance(found, Made) else _made(found, job, plan, folder)
        about = made.told._asdict()
        record = Record(job.name, job.out, DONE, plan.key, size=size, modified=modified, **about)
        if job.file.exists() and not overwrite:
            record = replace(record, blake3=hashing.result())
            if (kept := _there(job, plan, record, known)) is not None:
                return replace(kept, error=_checked(job, plan, made))
        job.file.parent.mkdir(parents=True, exist_ok=True)
        _write(made, Path(job.out), source, hashing, plan)
    finally:
        digest = hashing.result()
    error = _checked(job, plan, made)
    return replace(record, blake3=digest, bytes=job.file.stat().st_size, error=error)


_RENAMINGS = Renamings()


def _made(raw: RawCheckpoint, job: Job, plan: Plan, folder: bool) -> Made:
    """The result where values are looked at."""
    adapter = read_adapter(raw, check_finite=plan.check or plan.dtype is not None)
    left_out(adapter, plan)  # refuses, where that is asked for, before any work is done
    shaped = changed(adapter, plan)
    composed = compose(cast(shaped, plan), plan.to or adapter.dialect, folder=folder)
    about = told(adapter, plan, len(composed.tensors), shaped.losses)
    mapped = raw.tensors if isinstance(raw.tensors, MappedTensors) else None
    layout = lay_out(composed.tensors, job.file.name, placed_in(mapped))
    data_start = mapped.data_start if mapped is not None else 0
    return Made(about, layout, data_start, composed.metadata, raw.metadata, composed.beside, shaped)


def _there(job: Job, plan: Plan, record: Record, known: Record | None) -> Record | None:
    """The record of a result that is there already; None where it may be replaced. Raises ConvertError where not."""
    size = job.file.stat().st_size
    if is_made_by(job.file, record.blake3, plan):
        return replace(record, status=KEPT, bytes=size)
    if known is not None and known.out == job.out and known.bytes == size:
        return None  # ours, of an older source or another plan
    raise ConvertError(f"{job.file.name}: is there already, and not from this source by this plan. Pass --overwrite.")


def _write(made: Made, out: Path, source: Path, hashing: Hashing, plan: Plan) -> None:
    """Write the result. The source's hash, which the header holds, is waited for only when all else is written."""
    with open_binary(source, source.name) as file:
        copied = Copied(file, made.data_start)
        first = signed(made, PENDING, plan, copied)

        def seal() -> dict[str, str]:
            return {**first, **provenance(made.origin, hashing.result(), plan)}

        write_with(made.beside, out, lambda path: write_layout(path, made.layout, first, copied, seal))


def _checked(job: Job, plan: Plan, made: Made) -> float | None:
    """The error of a result, where the plan asks for it; one that is found wrong is removed, or the next run would take
    it for done."""
    try:
        return _verified(job, plan, made.shaped) if plan.verify and made.shaped is not None else None
    except DiffAdaptError:
        job.file.unlink()
        raise


def _verified(job: Job, plan: Plan, shaped: Adapter) -> float:
    """The largest error of the tensors in the file that was written. Raises ConvertError where it is too large."""
    again = read_adapter(job.file)
    if lost := [key for key in shaped.targets if key not in again.targets]:
        raise ConvertError(f"{job.file.name}: {lost[0].module} is not found again. Please report this file.")
    kinds = ((shaped.targets, again.targets), (shaped.foreign, again.foreign))
    error: float = max(largest_error(before, after) for before, after in kinds)
    if error > _EXACT[plan.dtype]:
        raise ConvertError(
            f"{job.file.name}: differs by {error:.2g} from the source when read again; {plan.dtype or 'it'} cannot "
            "hold its numbers. Choose another --dtype."
        )
    return error


PENDING = "0" * 64
"""Stands for a hash that is not known yet."""

_BLOCK = 1 << 18
"""Bytes that are read at once: what fits into a processor's own cache is hashed a quarter faster."""


class Hashing:
    """The BLAKE3 of a file, worked out beside other work. It is among the hashes that model sites list, and several
    times as fast as SHA-256, which would take longer than the copy."""

    def __init__(self, path: Path) -> None:
        self.path, self.digest = path, ""
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        digest, block = blake3(), memoryview(bytearray(_BLOCK))
        try:
            with self.path.open("rb", buffering=0) as file:
                while count := file.readinto(block):
                    digest.update(block[:count])
        except OSError as error:
            self.error = error
        self.digest = str(digest.hexdigest())

    def result(self) -> str:
        """64 hex. Raises SourceError where the file could not be read."""
        self._thread.join()
        if self.error is not None:
            raise SourceError(f"{self.path.name}: cannot be read ({self.error.strerror}).") from self.error
        return self.digest
