"""`diffadapt demo`: an embedded pipeline draws with each of its adapters, with mixes, and merged; offline.

For each pipeline one sheet of pictures is written and a table printed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

import diffadapt
from diffadapt import shapes

from .cards import rows
from .proof import Proof, fingerprints, prove
from .sheet import sheet
from .shots import Shot, Wishes, every, pairs

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class Shown:
    """A pipeline with its adapters loaded, and what was drawn with it.

    reports, seconds: what each load applied, and how long it took. pictures: shot -> picture.
    """

    name: str
    pipe: Any
    samples: tuple[shapes.Sample, ...]
    before: dict[str, str]
    reports: dict[str, diffadapt.LoadReport] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    pictures: dict[Shot, Image] = field(default_factory=dict)
    proof: Proof | None = None

    @property
    def good(self) -> bool:
        """Whether every adapter found all its modules, and merging and unmerging do what they promise."""
        return all(report.complete for report in self.reports.values()) and (self.proof is None or self.proof.holds)


def run(names: Sequence[str], out: Path, wishes: Wishes) -> int:
    """Show the named pipelines. out: a .png file (of several pipelines, with their names added), or a folder.

    Returns 1 where something did not do what it promises, otherwise 0. Raises SourceError where data are missing.
    """
    good = True
    for name in names:
        started = time.perf_counter()
        shown = show(name, wishes)
        file = target(out, name, several=len(names) > 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        picture_sheet(shown, wishes).save(file, optimize=True)
        print(table(shown))
        print(shown.proof or "There are fewer than two adapters: nothing was mixed.")
        print(f"{file}: {len(shown.pictures)} pictures in {time.perf_counter() - started:.1f} s\n", flush=True)
        good &= shown.good
    return 0 if good else 1


def target(out: Path, name: str, several: bool) -> Path:
    """The file of a pipeline's sheet."""
    if out.suffix.lower() != ".png":
        return out / f"demo-{name}.png"
    return out.with_name(f"{out.stem}-{name}.png") if several else out


def show(name: str, wishes: Wishes) -> Shown:
    """Load a pipeline and all its adapters, and make the pictures of its sheet."""
    pipe = diffadapt.enable(shapes.load(name))
    shown = Shown(name, pipe, shapes.adapters(name), fingerprints(pipe))
    for sample in shown.samples:
        started = time.perf_counter()
        shown.reports[sample.name] = pipe.load_adapter(sample.path, adapter_name=sample.name, weight=0.0)
        shown.seconds[sample.name] = time.perf_counter() - started
    if wishes.merged:
        pipe.adapters.merge()  # from here on every mix is brought into the weights
    shown.pictures = take(shown, every(shown.samples, wishes), wishes)
    pipe.adapters.unmerge()
    for first, second in pairs(shown.samples)[:1]:
        mix = {first.name: 1.0, second.name: 1.0}
        shown.proof = prove(pipe, shown.before, mix, wishes.text(first), wishes.seed, **wishes.overrides)
    return shown


def take(shown: Shown, shots: Iterable[Shot], wishes: Wishes) -> dict[Shot, Image]:
    """Make pictures, all of the same mix in one call of the pipeline and all from the same noise."""
    from huggingface_hub.utils import tqdm

    prompts: dict[tuple[tuple[str, float], ...], dict[str, None]] = {}
    for shot in shots:
        prompts.setdefault(shot.mix, {})[shot.prompt] = None
    made: dict[Shot, Image] = {}
    for mix, texts in tqdm(prompts.items(), desc=shapes.title(shown.name), unit="mix", delay=3.0, file=sys.stderr):
        shown.pipe.adapters.set(dict(mix))
        pictures = shapes.picture(shown.pipe, list(texts), wishes.seed, **wishes.overrides)
        made.update({Shot(mix, text): picture for text, picture in zip(texts, pictures, strict=True)})
    return made


def picture_sheet(shown: Shown, wishes: Wishes) -> Image:
    """The labelled sheet of what was drawn."""
    options = shapes.settings(shown.name) | wishes.overrides
    rates = shapes.accuracy(shown.name)
    prompts, right = rates.pop("prompts"), rates.pop("right", None)
    followed = ", ".join(f"{key} {rate:.1%}" for key, rate in rates.items())
    weights = sum(p.numel() for m in shown.pipe.components.values() if isinstance(m, nn.Module) for p in m.parameters())
    about = (
        f"{type(shown.pipe).__name__}, {weights / 1e6:.1f} million parameters; {options['num_inference_steps']} steps, "
        f"seed {wishes.seed}, {'merged' if wishes.merged else 'live'} adapters. Drawn right in {prompts:g} prompts of "
        f"unseen combinations: {followed}{'' if right is None else f'; all at once {right:.1%}'}."
    )
    return sheet(shapes.title(shown.name), about, rows(shown.samples, shown.pictures, shown.proof, wishes))


def table(shown: Shown) -> str:
    """What was loaded, for the console: one line for each adapter."""
    lines = [("adapter", "algorithm", "layout", "applied", "score", "seconds")]
    for sample in shown.samples:
        report = shown.reports[sample.name]
        score = f"{sample.score_without:.2f} -> {sample.score_with:.2f}"
        applied, took = f"{len(report.applied)} of {report.total}", f"{shown.seconds[sample.name]:.2f}"
        lines.append((sample.name, sample.algorithm, sample.layout, applied, score, took))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([f"{shapes.title(shown.name)} ({type(shown.pipe).__name__})", *text])
