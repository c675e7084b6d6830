"""What the package promises as a package: cheap import, annotations, small files, extras, what a wheel holds."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
import zlib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import diffadapt

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = sorted(path for top in ("diffadapt", "converters", "apps") for path in (ROOT / top).rglob("*.py"))
HEAVY = ("diffusers", "transformers", "peft", "lycoris", "gradio", "accelerate", "ray", "huggingface_hub", "PIL")
LINES = 400
EXTRAS = {"quantised", "mcp", "parquet", "ray", "peft", "test", "train", "benchmark"}


def python(code: str, *, cwd: Path = ROOT) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_version_is_one() -> None:
    assert diffadapt.__version__ == PROJECT["project"]["version"] == importlib.metadata.version("diffadapt")


def test_import_pulls_in_nothing_heavy() -> None:
    loaded = json.loads(python("import torch, sys, json, diffadapt; print(json.dumps(sorted(sys.modules)))"))
    plain = json.loads(python("import torch, sys, json; print(json.dumps(sorted(sys.modules)))"))
    brought = {name.split(".")[0] for name in set(loaded) - set(plain)}
    assert not brought & set(HEAVY)


def test_everything_public_is_there_and_documented() -> None:
    for name in diffadapt.__all__:
        thing = getattr(diffadapt, name)
        assert inspect.getdoc(thing), name


def functions(path: Path) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Public functions and methods of a file, with their qualified names."""
    found = []

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                found.append((prefix + child.name, child))

    walk(ast.parse(path.read_text(encoding="utf-8")), "")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_annotated_and_files_are_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LINES, f"{path.name} has more than {LINES} lines: split it"
    assert not text.strip() or ast.get_docstring(ast.parse(text)), f"{path.name} has no docstring"
    for name, function in functions(path):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        extra = [a for a in (function.args.vararg, function.args.kwarg) if a is not None]
        bare = [a.arg for a in (*arguments, *extra) if a.annotation is None and a.arg not in ("self", "cls", "mcs")]
        assert not bare, f"{name}: {bare}"
        assert function.returns is not None, name


def test_the_api_is_documented() -> None:
    public = [diffadapt.enable, diffadapt.load_adapter, diffadapt.read_adapter, diffadapt.Adapter.save]
    stack = diffadapt.PipelineAdapters
    public += [value for name, value in vars(stack).items() if inspect.isfunction(value) and not name.startswith("_")]
    assert [f.__qualname__ for f in public if not inspect.getdoc(f)] == []


def blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), re.M | re.S)


def test_readme_code_compiles() -> None:
    found = blocks("README.md")
    assert found
    for number, block in enumerate(found):
        compile(block, f"README.md block {number}", "exec")


def test_readme_names_what_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for method in set(re.findall(r"pipe\.adapters\.(\w+)", text)):
        assert hasattr(diffadapt.PipelineAdapters, method), method
    for error in set(re.findall(r"`(\w+Error)`", text)):
        assert hasattr(diffadapt, error), error
    for link in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (ROOT / link).exists(), link


def test_no_machine_or_registry_is_named() -> None:
    names = re.compile(r"pypi\.org|pythonhosted|download\.pytorch|/work/|/root/|/opt/|/home/\w")
    files = [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "pyproject.toml", "dev.py", ".ci/run")]
    files += [*SOURCES, *(p for top in ("examples", "benchmarks") for p in (ROOT / top).rglob("*.*"))]
    found = [p.name for p in files if p.suffix != ".pyc" and names.search(p.read_text(encoding="utf-8"))]
    assert found == []


def test_extras_are_named_and_met_by_what_is_known() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(extras) == EXTRAS
    lists = [PROJECT["project"]["dependencies"], *extras.values()]
    requirements = [Requirement(line) for lines in lists for line in lines]
    for requirement in requirements:
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        assert requirement.specifier.contains(installed.split("+")[0], prereleases=True), str(requirement)


def test_every_package_is_listed() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    there = {path.parent.relative_to(ROOT) for path in SOURCES if path.name == "__init__.py"}
    names = {".".join(p.parts) if p.parts[0] == "diffadapt" else ".".join(("diffadapt", *p.parts)) for p in there}
    assert listed == names


def embedded() -> list[Path]:
    """The files of the embedded pipelines and adapters."""
    return sorted(path for path in (ROOT / "diffadapt" / "shapes" / "data").rglob("*") if path.is_file())


def test_what_is_embedded_is_small_and_whole() -> None:
    assert {"index.json", "README.md"} <= {path.name for path in embedded()}
    packed = sum(len(zlib.compress(path.read_bytes())) for path in embedded())
    assert packed < 16 * 10**6  # of the wheel, which packs its files just so


def copied(tmp_path: Path) -> Path:
    """A copy of what a distribution is made from, so that building leaves nothing here."""
    source = tmp_path / "source with a space"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("diffadapt", "converters", "apps"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    return source


def test_a_wheel_holds_converters_apps_types_and_data(tmp_path: Path) -> None:
    source = copied(tmp_path)
    options = ["--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
        names = set(archive.namelist())
    for path in [*SOURCES, *embedded()]:
        inside = path.relative_to(ROOT)
        inside = inside if inside.parts[0] == "diffadapt" else Path("diffadapt") / inside
        assert inside.as_posix() in names
    assert "diffadapt/py.typed" in names
    code = f"import sys; sys.path.insert(0, {str(unpacked)!r}); import diffadapt.converters as c, diffadapt.apps as a"
    assert str(unpacked) in python(code + "; print(c.__file__, a.__file__)", cwd=tmp_path)


def test_a_source_distribution_holds_sources_and_data(tmp_path: Path) -> None:
    build = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    name = python(build, cwd=copied(tmp_path)).split()[-1]
    with tarfile.open(tmp_path / name) as archive:
        names = {Path(*Path(inside).parts[1:]) for inside in archive.getnames()}
    assert {path.relative_to(ROOT) for path in [*SOURCES, *embedded()]} <= names


def test_the_editable_install_exposes_converters_and_apps(tmp_path: Path) -> None:
    assert python("import diffadapt.converters as c, diffadapt.apps as a; print(c.__doc__, a.__doc__)", cwd=tmp_path)
