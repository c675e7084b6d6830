"""One SQLite file of what is in a library; what is broken in it, and what is in it twice."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest

import diffadapt
from diffadapt.command import main
from diffadapt.converters.batch import convert_files
from diffadapt.converters.index import COLUMNS, duplicates, health, open_index, update
from diffadapt.errors import SourceError
from diffadapt.fingerprint import fingerprint
from diffadapt.io.hashes import hash_file
from tests.converters import files


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Two adapters, one of them in three dialects, and broken files."""
    folder = tmp_path / "library"
    folder.mkdir()
    files.plain(folder / "ink.safetensors", rank=2, header=files.HEADER | {"ss_network_module": "networks.lora"})
    files.plain(folder / "clay.safetensors", rank=3, seed=5)
    for dialect in ("diffusers", "comfy"):
        (record,) = convert_files(str(folder / "ink.safetensors"), tmp_path / dialect, dialect)
        shutil.copy(record.file, folder / f"ink-{dialect}.safetensors")
    (folder / "broken").mkdir()
    files.broken(folder / "broken", folder / "ink.safetensors")
    return folder


def rows(database: sqlite3.Connection) -> dict[str, sqlite3.Row]:
    return {Path(row["path"]).name: row for row in database.execute("SELECT * FROM files")}


def test_what_is_known_of_a_file(library: Path, tmp_path: Path) -> None:
    with open_index(tmp_path / "index.sqlite") as database:
        assert len(list(update(database, [str(library)]))) == 13
        row = rows(database)["ink.safetensors"]
        known = hash_file(library / "ink.safetensors")
        assert (row["sha256"], row["autov2"], row["autov3"]) == (known.sha256, known.autov2, known.autov3)
        assert (row["dialect"], row["health"], row["title"], row["licence"]) == ("kohya", "ok", "Ink", "Apache-2.0")
        assert json.loads(row["algorithms"]) == {"lora": len(diffadapt.read_adapter(row["path"]).targets)}
        assert json.loads(row["ranks"]) == [2]
        assert json.loads(row["trigger_words"]) == ["ink"]
        assert row["norm"] == pytest.approx(diffadapt.read_adapter(row["path"]).explain(norms=True).norm)
        assert len(json.loads(row["norms"])) > 2
        assert row["fingerprint"] == fingerprint(diffadapt.read_adapter(row["path"]))


def test_what_is_broken_is_said(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_index(tmp_path / "index.sqlite") as database:
        list(update(database, [str(library)]))
        assert health(database) == {"ok": 4, "broken": 8, "problem": 1}
        found = rows(database)
        assert found["nan.safetensors"]["health"] == "problem"
        assert "NaN" in json.loads(found["nan.safetensors"]["problems"])[0]
        assert "Git LFS" in json.loads(found["pointer.safetensors"]["problems"])[0]
    assert main(["scan", str(library), "--workers", "1"]) == 1
    said = capsys.readouterr().out
    assert "code.pt" in said
    assert "4 ok, 1 problem, 8 broken" in said
    assert main(["scan", str(library / "ink.safetensors")]) == 0


def test_only_what_changed_is_read_again(library: Path, tmp_path: Path) -> None:
    with open_index(tmp_path / "index.sqlite") as database:
        list(update(database, [str(library)]))
    (library / "ink-comfy.safetensors").unlink()
    files.plain(library / "clay.safetensors", rank=4, seed=6)
    os.utime(library / "ink.safetensors")
    with open_index(tmp_path / "index.sqlite") as database:
        seen = {Path(row["path"]).name for row in update(database, [str(library)])}
        assert seen == {"clay.safetensors", "ink.safetensors"}
        assert "ink-comfy.safetensors" not in rows(database)
        assert json.loads(rows(database)["clay.safetensors"]["ranks"]) == [4]
        assert list(update(database, [str(library / "clay.safetensors")])) == []
        assert len(rows(database)) == 12  # a part of the library says nothing of the rest


def test_the_same_adapter_in_several_dialects(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_index(tmp_path / "index.sqlite") as database:
        list(update(database, [str(library)]))
        (group,) = duplicates(database)
    names = ["ink-comfy.safetensors", "ink-diffusers.safetensors", "ink.safetensors"]
    assert [Path(row["path"]).name for row in group] == names
    assert main(["dedupe", str(library), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert [Path(path).name for path in json.loads(line)["files"]] == names
    assert main(["dedupe", str(library), "--delete"]) == 0
    assert sorted(path.name for path in library.glob("ink*")) == names[:1]


def test_other_numbers_are_another_adapter(library: Path, tmp_path: Path) -> None:
    one = diffadapt.read_adapter(library / "ink.safetensors")
    (record,) = convert_files(str(library / "ink.safetensors"), tmp_path / "bf16", "kohya", dtype="bf16")
    assert fingerprint(diffadapt.read_adapter(record.file)) != fingerprint(one)
    half = diffadapt.read_adapter(library / "ink.safetensors", alpha=0.5)
    assert fingerprint(half) != fingerprint(one)


def test_the_command_keeps_an_index(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(library), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(found) == 13
    assert set(found[0]) == set(COLUMNS)
    assert (library / "diffadapt-index.sqlite").is_file()


def test_what_is_no_index_is_refused(library: Path, tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(SourceError, match="cannot be used as an index"), open_index(tmp_path / "index.sqlite"):
        pass
    with open_index(tmp_path / "new.sqlite") as database, database:
        database.execute("UPDATE about SET version = 99")
    with pytest.raises(SourceError, match="version 99"), open_index(tmp_path / "new.sqlite"):
        pass


def test_an_index_as_parquet(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyarrow import parquet

    out = tmp_path / "index.parquet"
    assert main(["index", str(library), "--parquet", str(out)]) == 0
    table = parquet.read_table(out)
    assert table.column_names == list(COLUMNS)
    with open_index(library / "diffadapt-index.sqlite") as database:
        known = [dict(row) for row in database.execute("SELECT * FROM files ORDER BY path")]
    assert table.to_pylist() == known
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["index", str(library), "--parquet", str(out)]) == 1
