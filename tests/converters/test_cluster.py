"""A batch on a Ray of two processors, some of whose workers are killed in the middle."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import save_file

from diffadapt.command import main
from diffadapt.converters import cluster, local
from diffadapt.converters.batch import Batch
from diffadapt.converters.jobs import Job
from diffadapt.converters.plan import Plan
from diffadapt.converters.work import DONE, FAILED, KEPT, Record, convert
from diffadapt.errors import ConvertError

ROOT = Path(__file__).parents[2]
FILES, CPUS = 30, 2
PLAN = Plan("diffusers", check=True)
MEMORY = 2 << 30
WRITING, LATE, ALWAYS = "05", "06", "07"
"""Files over which a worker dies: while it writes, when all is done (once each), every time."""


def watched(job: Job, plan: Plan, *, known: Record | None, overwrite: bool) -> Record:
    """The unit of work, in a worker: it is written down when it begins and ends, and dies over some files."""
    source, name = Path(job.source), Path(job.source).stem
    note(source, f"begun {name}")
    if name == ALWAYS:
        die()
    first = not source.with_suffix(".met").exists()
    source.with_suffix(".met").touch()

    def wait(*_: object) -> None:
        source.with_suffix(".pid").write_text(f"{os.getpid()}\n")
        threading.Event().wait()

    with mock.patch.object(os, "replace", wait) if name == WRITING and first else nullcontext():
        record = convert(job, plan, known=known, overwrite=overwrite)
    note(source, f"{record.status} {name}")
    if name == LATE and first:
        die()
    return record


def slow(job: Job, plan: Plan, *, known: Record | None, overwrite: bool) -> Record:
    """The unit of work, which begins, and goes on when it is told to."""
    note(Path(job.source), f"begun {Path(job.source).stem}")
    while not Path(job.source).with_name("go").exists():
        time.sleep(0.01)
    return convert(job, plan, known=known, overwrite=overwrite)


def wrong(*_: object, **__: object) -> Record:
    """What a worker cannot even begin."""
    raise ModuleNotFoundError("No module named 'diffadapt'")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def note(source: Path, text: str) -> None:
    with source.with_name("log").open("a") as log:
        log.write(f"{text}\n")


def noted(folder: Path, what: str) -> list[str]:
    """The files of which a word was written down."""
    log = folder / "log"
    return [line.split()[1] for line in log.read_text().splitlines() if line.startswith(what)] if log.exists() else []


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 120
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def kill(file: Path) -> None:
    """Kill the process whose id a file will hold."""
    until(lambda: file.exists() and file.read_text().endswith("\n"))
    os.kill(int(file.read_text()), signal.SIGKILL)


def adapter(rank: int) -> dict[str, torch.Tensor]:
    """A LoRA of a few layers, by Kohya's names. Nothing here imports Diffusers, for every worker would have to wait."""
    layers = [f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn{n}_to_{x}" for n in (1, 2) for x in "qkv"]
    return {
        f"{layer}.{name}.weight": torch.randn(shape).half()
        for layer in layers
        for name, shape in (("lora_down", (rank, 16)), ("lora_up", (16, rank)))
    }


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder of files, beside one that would stand in for the program where workers import from here."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        save_file(adapter(1 + number), folder / f"{number:02}.safetensors")
    for number in range(3, FILES):
        shutil.copy(folder / f"{number % 3:02}.safetensors", folder / f"{number:02}.safetensors")
    (tmp_path / "diffadapt.py").write_text("raise SystemExit")
    return folder


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray of two processors that nobody is connected to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # for `watched`
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        options = {"num_cpus": CPUS, "memory": MEMORY, "include_dashboard": False, "object_store_memory": 100 << 20}
        started = Cluster(initialize_head=True, head_node_args=options)
    try:
        yield started.address
    finally:
        started.shutdown()


def test_nothing_is_lost_or_done_twice_where_workers_die(
    library: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cluster.ADDRESS, address)
    monkeypatch.setattr(cluster, "convert", watched)
    monkeypatch.setattr(cluster, "RETRIES", 1)
    in_flight: list[int] = []
    wait = ray.wait
    monkeypatch.setattr(ray, "wait", lambda tasks, **how: in_flight.append(len(tasks)) or wait(tasks, **how))
    killer = threading.Thread(target=kill, args=(library / f"{WRITING}.pid",))
    killer.start()
    monkeypatch.chdir(tmp_path)
    batch = Batch(["in"], Path("out"), PLAN)
    list(local.run([job for job in batch.jobs if LATE in job.out], Plan("kohya"), known={}))  # to be written over
    found = list(batch.run(engine=cluster.run, overwrite=True))
    killer.join()
    assert not ray.is_initialized()

    names = {f"{number:02}" for number in range(FILES)}
    assert sorted(Path(record.source).stem for record in found) == sorted(names)
    by = {Path(record.source).stem: record for record in found}
    assert Counter(record.status for record in found) == {DONE: FILES - 2, KEPT: 1, FAILED: 1}
    assert by[LATE].status == KEPT
    assert (by[ALWAYS].status, by[ALWAYS].kind) == (FAILED, "WorkerDied")
    assert Counter(noted(library, DONE)) == dict.fromkeys(names - {ALWAYS}, 1)
    begun = {WRITING: 2, LATE: 2, ALWAYS: cluster.RETRIES + 1}
    assert Counter(noted(library, "begun")) == dict.fromkeys(names, 1) | begun
    assert max(in_flight) == cluster.AHEAD * CPUS

    lines = [json.loads(line) for line in batch.report.read_text().splitlines()]
    assert lines == [record.to_dict() for record in sorted(found, key=lambda record: record.source)]
    expected = local.run([Job(job.source, f"expected/{Path(job.out).name}") for job in batch.jobs], PLAN, known={},
                         workers=1)  # fmt: skip
    for record in expected:
        if Path(record.source).stem != ALWAYS:
            assert Path("out", Path(record.out).name).read_bytes() == Path(record.out).read_bytes()
    assert not list(Path("out").glob(".*"))


def test_a_stop_lets_begun_files_end_and_a_callers_ray_alone(
    library: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [number for number in range(12) if f"{number:02}" not in (WRITING, LATE, ALWAYS)]
    work = [Job(f"in/{number:02}.safetensors", f"out/{number:02}.safetensors") for number in numbers]
    monkeypatch.chdir(ROOT)
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(cluster, "convert", slow)
        stop = threading.Event()
        found: list[Record] = []
        thread = threading.Thread(target=lambda: found.extend(cluster.run(work, PLAN, known={}, stop=stop)))
        cancelled: list[object] = []
        cancel = ray.cancel
        monkeypatch.setattr(ray, "cancel", lambda task, **how: cancelled.append(task) or cancel(task, **how))
        thread.start()
        until(lambda: len(noted(library, "begun")) == CPUS)
        stop.set()
        until(lambda: len(cancelled) == cluster.AHEAD * CPUS)
        (library / "go").touch()
        thread.join()
        assert sorted(Path(record.source).stem for record in found) == sorted(noted(library, "begun"))
        assert [record.status for record in found] == [DONE] * CPUS
        assert sorted(path.name for path in Path("out").iterdir()) == sorted(Path(record.out).name for record in found)

        (library / "log").unlink()
        monkeypatch.setattr(cluster, "convert", watched)
        records = cluster.run(work, PLAN, known={}, overwrite=True)
        next(records)
        records.close()
        assert sorted(noted(library, "begun")) == sorted(noted(library, DONE))

        monkeypatch.setattr(cluster, "convert", wrong)
        (record,) = cluster.run(work[:1], PLAN, known={})
        assert (record.status, record.kind) == (FAILED, "ClusterError")
        assert "No module named 'diffadapt'" in record.message
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_the_command_line(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cluster.ADDRESS, raising=False)
    arguments = ["convert", str(library / "00.safetensors"), str(library / "01.safetensors"), "--to", "kohya"]
    monkeypatch.setattr(cluster, "needed", lambda job: 1 << 50)  # more than there is is not waited for
    assert main([*arguments, "-o", str(tmp_path / "out"), "--engine", "ray", "--workers", "1"]) == 0
    assert not ray.is_initialized()
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == [
        "00.safetensors", "01.safetensors",
    ]  # fmt: skip


def test_without_ray_or_a_cluster_it_is_said(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", str(library), "--to", "kohya", "-o", str(tmp_path / "out"), "--engine", "ray"]

    def refused(*_: object, **__: object) -> None:
        raise ConnectionError("Nobody answers.")

    with monkeypatch.context() as patch:
        patch.setenv(cluster.ADDRESS, "127.0.0.1:1")
        assert main(arguments) == 2
        assert "No cluster at RAY_ADDRESS=127.0.0.1:1 (" in capsys.readouterr().err
        patch.setattr(ray, "init", refused)
        patch.delenv(cluster.ADDRESS)
        with pytest.raises(ConvertError, match=r"does not start on this machine \(Nobody"), cluster.connected(ray):
            pass
    shutil.rmtree(tmp_path / "out")

    imported = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name == "ray":
            raise ModuleNotFoundError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(arguments) == 2
    assert 'pip install "diffadapt[ray]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConvertError, match=r"diffadapt\[ray\]"):
        list(cluster.run([Job("a", "b")], PLAN, known={}))
    assert list(cluster.run([], PLAN, known={})) == []


def test_a_task_asks_for_memory_by_its_files_size(tmp_path: Path) -> None:
    small, large = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    small.touch()
    with large.open("wb") as file:
        file.truncate(1 << 30)
    ask = [cluster.needed(Job(str(path), "out")) for path in (tmp_path / "none", small, large)]
    assert ask == [512 << 20, 512 << 20, (3 << 30) + (512 << 20)]
