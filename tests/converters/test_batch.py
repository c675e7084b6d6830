"""A folder of hundreds of files, some of them broken, stopped in the middle and taken up again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from diffadapt.command import main
from diffadapt.converters.batch import Batch, convert_files
from diffadapt.converters.jobs import Job, jobs, shard
from diffadapt.converters.local import run
from diffadapt.converters.plan import Plan
from diffadapt.converters.work import DONE, FAILED, KEPT, Record, convert
from diffadapt.converters.workers import Died, Worker
from diffadapt.errors import ConvertError
from tests.converters import files

FILES, BROKEN = 500, 25
PLAN = Plan("diffusers", check=True)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    for number in range(8):
        files.plain(folder / f"{number}.safetensors", rank=1 + number % 4, seed=number)
    return folder


@pytest.fixture(scope="module")
def library(good: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A tree of files, and which of them are broken: path -> kind of error."""
    folder = tmp_path_factory.mktemp("library")
    for number in range(FILES - BROKEN):
        target = folder / f"shelf{number % 7}" / f"{number:03}.safetensors"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(good / f"{number % 8}.safetensors", target)
    wrong: dict[str, str] = {}
    for shelf in range(3):
        place = folder / f"broken{shelf}"
        place.mkdir()
        found = files.broken(place, good / "0.safetensors")
        for name, kind in list(found.items())[: BROKEN - len(wrong)]:
            wrong[str(place / name)] = kind
        for name in found.keys() - {Path(path).name for path in wrong if Path(path).parent == place}:
            (place / name).unlink()
    assert len(wrong) == BROKEN
    return folder, wrong


def command(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "diffadapt", "convert", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True, **options)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_that_is_stopped_twice_ends_complete(library: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, wrong = library
    report = tmp_path / "out" / "diffadapt-convert.jsonl"
    arguments = (folder, "--to", "diffusers", "-o", tmp_path / "out", "--check", "--workers", "2")
    reached = 0
    for share in (0.2, 0.55):
        process = command(*arguments)
        give_up = time.monotonic() + 120
        while not report.exists() or report.read_text().count("\n") < share * FILES:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < give_up
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 130, said
        assert "goes on" in said
        done = lines(report)
        assert reached < len(done) < FILES
        assert len({line["source"] for line in done}) == len(done)
        reached = len(done)
        assert not list((tmp_path / "out").rglob("*.part"))
    before = {line["source"]: Path(line["out"]).stat().st_mtime_ns for line in lines(report) if line["status"] == DONE}
    process = command(*arguments)
    said = process.communicate(timeout=200)[1]
    assert process.returncode == 1, said
    found = {line["source"]: line for line in lines(report)}
    assert len(found) == len(lines(report)) == FILES
    assert {source: line["kind"] for source, line in found.items() if line["status"] == FAILED} == wrong
    assert all(source.endswith(Path(line["message"].partition(":")[0]).name) for source, line in found.items()
               if line["status"] == FAILED)  # fmt: skip
    made = [line for line in found.values() if line["status"] in (DONE, KEPT)]
    assert len(made) == FILES - BROKEN
    for line in made:
        relative = Path(line["source"]).relative_to(folder)
        assert Path(line["out"]) == tmp_path / "out" / relative
        assert Path(line["out"]).stat().st_size == line["bytes"]
    # what was there was not done again
    assert all(Path(found[source]["out"]).stat().st_mtime_ns == when for source, when in before.items())
    assert not Path("/tmp/diffadapt-was-here").exists()


def test_what_changed_is_done_again_and_nothing_else(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "in")

    def status() -> Counter[str]:
        return Counter(record.status for record in Batch([str(tmp_path / "in")], tmp_path / "out", PLAN).run())

    assert status() == {DONE: 8}
    assert status() == {KEPT: 8}
    os.utime(tmp_path / "in" / "1.safetensors")  # touched, with the same bytes
    assert status() == {KEPT: 8}
    files.plain(tmp_path / "in" / "1.safetensors", rank=3, seed=99)
    (tmp_path / "out" / "2.safetensors").unlink()
    assert status() == {DONE: 2, KEPT: 6}
    other = [record.status for record in Batch([str(tmp_path / "in")], tmp_path / "out", Plan("kohya")).run()]
    assert other == [DONE] * 8  # ours, by another plan


def test_what_others_wrote_is_not_replaced(good: Path, tmp_path: Path) -> None:
    (tmp_path / "0.safetensors").write_bytes(b"mine")
    (record,) = Batch([str(good / "0.safetensors")], tmp_path, PLAN).run()
    assert (record.status, record.kind) == (FAILED, "ConvertError")
    assert (tmp_path / "0.safetensors").read_bytes() == b"mine"
    (record,) = Batch([str(good / "0.safetensors")], tmp_path, PLAN).run(overwrite=True)
    assert record.status == DONE


def test_a_result_without_a_line_in_the_journal_is_known_by_what_it_says(good: Path, tmp_path: Path) -> None:
    source = str(good / "0.safetensors")
    list(Batch([source], tmp_path, PLAN).run())
    (tmp_path / "diffadapt-convert.jsonl").unlink()
    (record,) = Batch([source], tmp_path, PLAN).run()
    assert record.status == KEPT
    with (tmp_path / "diffadapt-convert.jsonl").open("a") as journal:
        journal.write('{"source": "cut sho')
    (record,) = Batch([source], tmp_path, PLAN).run()
    assert record.status == KEPT
    assert len(lines(tmp_path / "diffadapt-convert.jsonl")) == 1


def test_half_a_file_of_a_killed_run_is_swept(good: Path, tmp_path: Path) -> None:
    half, other = tmp_path / ".0.safetensors.0123456789ab.part", tmp_path / ".9.safetensors.0123456789ab.part"
    half.touch()
    other.touch()
    list(Batch([str(good / "0.safetensors")], tmp_path, PLAN).run())
    assert not half.exists()
    assert other.exists()


def test_a_process_that_dies_costs_its_file(good: Path, tmp_path: Path) -> None:
    worker: Worker[Job, Record] = Worker()
    work = [Job(str(good / f"{i}.safetensors"), str(tmp_path / f"{i}.safetensors")) for i in range(3)]
    do = partial(convert, plan=PLAN)
    assert worker.do(do, work[0]).status == DONE  # type: ignore[union-attr]
    assert worker._pool is not None
    for pid in list(worker._pool._processes):
        os.kill(pid, signal.SIGKILL)
    assert isinstance(worker.do(do, work[1]), Died)
    assert worker.do(do, work[2]).status == DONE  # type: ignore[union-attr]


def test_a_stop_lets_begun_files_end(good: Path, tmp_path: Path) -> None:
    work = [Job(str(good / f"{i}.safetensors"), str(tmp_path / f"{i}.safetensors")) for i in range(8)]
    stop = threading.Event()
    seen = []
    for record in run(work, PLAN, known={}, workers=1, stop=stop):
        seen.append(record.status)
        stop.set()
    assert seen == [DONE]


def test_parts_of_a_job_array_make_the_whole(good: Path, tmp_path: Path) -> None:
    whole, _ = jobs([str(good)], tmp_path, "kohya")
    parts = [shard(whole, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(job.out for part in parts for job in part) == sorted(job.out for job in whole)
    for wrong in ("0/3", "4/3", "x", "1"):
        with pytest.raises(ConvertError):
            shard(whole, wrong)
    for i in (1, 2, 3):
        list(Batch([str(good)], tmp_path, PLAN, part=f"{i}/3").run())
    assert len(list(tmp_path.glob("*.safetensors"))) == 8
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == [
        f"diffadapt-convert.{i}of3.jsonl" for i in (1, 2, 3)
    ]


def test_names_that_clash_are_refused(good: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    shutil.copy(good / "0.safetensors", tmp_path / "a")
    with pytest.raises(ConvertError, match="would both be written"):
        jobs([str(good / "0.safetensors"), str(tmp_path / "a")], tmp_path / "out", "kohya")
    with pytest.raises(ConvertError, match="over itself"):
        jobs([str(tmp_path / "a")], tmp_path / "a", "kohya")
    with pytest.raises(ConvertError, match="is one file"):
        jobs([str(good)], tmp_path / "one.safetensors", "kohya")


def test_folders_name_what_peft_and_diffusers_name_alike(good: Path, tmp_path: Path) -> None:
    for name in ("ink", "clay"):
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copy(good / "0.safetensors", tmp_path / "in" / name / "adapter_model.safetensors")
    found, _ = jobs([str(tmp_path / "in")], tmp_path / "out", "kohya")
    assert [Path(job.out).name for job in found] == ["clay.safetensors", "ink.safetensors"]
    found, _ = jobs([str(good / "0.safetensors")], tmp_path / "out", "peft")
    assert found[0].file == tmp_path / "out" / "0" / "adapter_model.safetensors"


def test_the_command_line(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", str(good), "--to", "kohya", "-o", str(tmp_path / "out"), "--workers", "1"]
    assert main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out.count(" -> ") == 8
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--json", "--verify"]) == 0
    said = capsys.readouterr()
    assert {json.loads(line)["status"] for line in said.out.splitlines()} == {DONE}
    assert "8 done" in said.err
    assert main([*arguments, "--keep", "x"]) == 2
    missing = ["convert", str(tmp_path / "nowhere"), "--to", "kohya", "-o", str(tmp_path / "out")]
    assert main(missing) == 1
    assert "no such file" in capsys.readouterr().err
    assert main([*missing, "--fail-on", "none"]) == 0


def test_from_python(good: Path, tmp_path: Path) -> None:
    records = convert_files(str(good), tmp_path, "diffusers", dtype="bf16")
    assert [record.status for record in records] == [DONE] * 8
    with pytest.raises(ConvertError, match="dtpye"):
        convert_files(str(good), tmp_path, "diffusers", dtpye="bf16")
