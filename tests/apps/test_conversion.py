"""The mixer's converters: a row for every file, the files as one, and nothing of where they lie here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

import diffadapt
from diffadapt.apps.mixer import charts, conversion
from diffadapt.apps.mixer.library import Library
from diffadapt.apps.mixer.shelf import Shelf
from diffadapt.converters.plan import Plan
from diffadapt.errors import ConvertError, DiffAdaptError, SourceError
from tests.apps import files


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    folder = tmp_path_factory.mktemp("loras")
    for name in ("glow", "frame", "zibo"):
        shutil.copyfile(files.adapters("unet")[name], folder / f"{name}.safetensors")
    for below in ("a", "b"):
        (folder / below).mkdir()
        shutil.copyfile(files.adapters("unet")["outline"], folder / below / "style.safetensors")
    files.troubles(folder)
    library = Library([folder])
    library.scan(wait=True)
    return Shelf(library)


def test_files_are_written_in_another_dialect(shelf: Shelf, tmp_path: Path) -> None:
    ids = ["glow.safetensors", "frame.safetensors", "cut.safetensors"]
    records = conversion.convert(shelf, ids, tmp_path / "out", Plan(to="diffusers"))
    rows = {row[0]: dict(zip(conversion.COLUMNS, row, strict=True)) for row in map(conversion.row, records)}
    assert rows["glow.safetensors"]["result"] == rows["frame.safetensors"]["result"] == "written"
    assert (rows["frame.safetensors"]["from"], rows["glow.safetensors"]["from"]) == ("kohya", "diffusers")
    assert "lora" in rows["frame.safetensors"]["algorithms"]
    assert rows["cut.safetensors"]["result"] not in ("written", "written before")
    assert "cut.safetensors" in rows["cut.safetensors"]["said"]
    results = conversion.results(records)
    assert len(results) == 2
    for path in results:
        assert diffadapt.read_adapter(path).dialect == "diffusers"
    said = charts.table(conversion.COLUMNS, [conversion.row(record) for record in records])
    assert str(shelf.path("glow.safetensors").parent) not in said
    assert str(tmp_path) not in said
    again = conversion.convert(shelf, ids, tmp_path / "out", Plan(to="diffusers"))
    assert (
        sorted(conversion.row(record)[1] for record in again if conversion.results([record])) == ["written before"] * 2
    )


def test_all_of_it_is_one_file(shelf: Shelf, tmp_path: Path) -> None:
    records = conversion.convert(
        shelf, ["zibo.safetensors", "page.safetensors"], tmp_path / "out", Plan(dtype="bf16", rank=2)
    )
    path = conversion.packed(records, tmp_path / "out")
    with ZipFile(path) as archive:
        names = archive.namelist()
        assert not [name for name in names if name.startswith(("/", "..")) or "\\" in name]
        report = [json.loads(line) for line in archive.read("report.jsonl").decode().splitlines()]
        assert str(tmp_path) not in archive.read("report.jsonl").decode()
        archive.extractall(tmp_path / "there")
    assert len(names) == 2
    assert {line["source"] for line in report} == {"zibo.safetensors", "page.safetensors"}
    (made,) = (tmp_path / "there").glob("*.safetensors")
    adapter = diffadapt.read_adapter(made)
    assert {delta.rank for delta in adapter.targets.values()} == {2}
    by_name = {line["source"]: line for line in report}
    assert by_name["zibo.safetensors"]["losses"] > 0
    assert by_name["page.safetensors"]["message"]


def test_files_of_one_name_are_all_written(shelf: Shelf, tmp_path: Path) -> None:
    ids = ["a/style.safetensors", "b/style.safetensors", "glow.safetensors", "glow.safetensors"]
    records = conversion.convert(shelf, ids, tmp_path / "out", Plan(to="kohya"))
    assert len(set(conversion.results(records))) == len(records) == 3
    with ZipFile(conversion.packed(records, tmp_path / "out")) as archive:
        names = sorted(Path(name).name for name in archive.namelist())
    assert names == ["glow.safetensors", "report.jsonl", "style.safetensors", "style.safetensors"]


@pytest.mark.parametrize(
    ("ids", "error"), [([], ConvertError), (["glow.safetensors"] * 201, ConvertError), (["nothing"], SourceError)]
)
def test_too_few_too_many_and_unknown(shelf: Shelf, tmp_path: Path, ids: list[str], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"expected 1 to 200|'nothing'"):
        conversion.convert(shelf, ids, tmp_path / "out", Plan())


@pytest.mark.parametrize("make", [lambda: Plan(to="nonsense"), lambda: Plan(dtype="int8"), lambda: Plan(algorithm="x")])
def test_plans_that_there_are_not(shelf: Shelf, tmp_path: Path, make: Callable[[], Plan]) -> None:
    with pytest.raises(DiffAdaptError):
        conversion.convert(shelf, ["glow.safetensors"], tmp_path / "out", make())
