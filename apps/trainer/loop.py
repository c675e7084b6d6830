"""A whole training run: from settings to the adapter's file, going on where a killed one stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffadapt.errors import TrainingError
from diffadapt.training.methods import METHODS

from . import beginning, checkpoints, prior
from .checkpoints import Checkpoints
from .history import History
from .kinds import Kind, kind_of
from .material import Material
from .parsing import tables, toml
from .pictures import fingerprint, read_folder
from .run import Run
from .sampling import Sheets
from .settings import Settings

FREE = ("samples", "checkpoints", "output", "prior.folder", "data.folder", "adapter.dialect")
"""Settings that change nothing of the curve, and may be others when a run goes on."""


def train(settings: Settings, pipe: Any = None, *, fresh: bool = False, resume: bool = False) -> Path:
    """Train an adapter, or go on with a run of the same settings; the file that was written (PEFT's: a folder).

    pipe: the pipeline, in the place of the settings' own; an adapter of that name that is in training there is taken as
    it is. fresh: begin anew, whatever is in the output. resume: there has to be a checkpoint.
    In the output: the file, `log.jsonl`, `samples/`, `checkpoints/`, `settings.toml`. Raises TrainingError,
    SourceError, TargetError and StackError, each with what to do.
    """
    accelerator = _accelerator(settings)
    kept = Checkpoints(settings.out / "checkpoints", settings.checkpoints.keep)
    examples = read_folder(settings.path(settings.data.folder), settings.data.prompt)
    about = {"settings": tables(settings), "pictures": fingerprint(examples), "processes": accelerator.num_processes}
    if accelerator.is_main_process and fresh:
        kept.clear()
    accelerator.wait_for_everyone()
    last = _last(kept, about, resume)
    pipe = (pipe if pipe is not None else beginning.pipeline(settings)).to(accelerator.device)
    kind = kind_of(pipe, settings.loss, settings.data.prompt_length)
    quiet = not accelerator.is_main_process
    # Before anything that takes long: what cannot be trained is said at once.
    _add(kind, settings, accelerator)
    if not quiet:
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / "settings.toml").write_text(_header() + toml(settings), encoding="utf-8")
        with pipe.adapters.disable():
            prior.make(pipe, settings)
    accelerator.wait_for_everyone()
    material = [Material(kind, examples, settings.data, quiet=quiet)]
    instances = prior.examples(settings)
    if instances:
        material.append(Material(kind, instances, settings.data, "class", settings.prior.weight, quiet))
    return _steps(Run(kind, settings, material, accelerator), kept, last, about)


def _header() -> str:
    return "# What this run was told. Relative paths are meant from the folder of the file that it was started with.\n"


def _accelerator(settings: Settings) -> Any:
    """Accelerate's. Raises TrainingError where it is missing, and for a precision that this machine does not have."""
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise TrainingError('Training needs Accelerate: pip install "diffadapt[train]".') from error
    plan = settings.training
    sometimes = bool(settings.adapter.tokens) or settings.adapter.module_dropout > 0
    try:
        return Accelerator(
            mixed_precision=plan.mixed_precision, gradient_accumulation_steps=plan.accumulate,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=sometimes)],
        )  # fmt: skip
    except ValueError as error:
        raise TrainingError(f"training.mixed_precision = {plan.mixed_precision!r}: {error}") from error


def _add(kind: Kind, settings: Settings, accelerator: Any) -> None:
    """Put the adapter onto the pipeline. Raises what `beginning.add` and `beginning.check` raise."""
    torch.manual_seed(settings.seed + accelerator.process_index)
    report = beginning.add(kind.pipe, settings)
    beginning.check(kind.pipe, settings, kind.model)
    if accelerator.is_main_process:
        print(report, file=sys.stderr)
    if settings.training.gradient_checkpointing:
        kind.model.enable_gradient_checkpointing()


def _last(kept: Checkpoints, about: Mapping[str, Any], resume: bool) -> int:
    """The step of the newest checkpoint, or 0. Raises TrainingError where that one is of another run."""
    steps = kept.steps()
    if not steps:
        if resume:
            raise TrainingError(f"{kept.folder}: there is no checkpoint to go on from. Leave --resume out to begin.")
        return 0
    before = checkpoints.read_state(kept.path(steps[-1]))
    was, now = dict(_flat(before["settings"])), dict(_flat(about["settings"]))
    if str(now["training.schedule"]).startswith("constant"):
        was.pop("training.steps", None)  # a longer run begins as the shorter one
    odd = [f"{key} was {was[key]!r}, is {now.get(key)!r}" for key in was if was[key] != now.get(key)]
    odd += ["the pictures or their captions are others"] if before["pictures"] != about["pictures"] else []
    odd += [f"{before['processes']} processes ran" for _ in "1" if before["processes"] != about["processes"]]
    if odd:
        raise TrainingError(
            f"{kept.path(steps[-1])} is of a run that was told otherwise: {'; '.join(odd[:4])}. Put that back to "
            "go on, choose another output, or begin anew with --fresh."
        )
    return steps[-1]


def _flat(given: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Settings that shape the curve, by their full names."""
    for key, value in given.items():
        name = f"{where}{key}"
        if name in FREE:
            continue
        if isinstance(value, Mapping) and not where:
            yield from _flat(value, f"{name}.")
        else:
            yield name, json.loads(json.dumps(value))


def _steps(run: Run, kept: Checkpoints, last: int, about: Mapping[str, Any]) -> Path:
    """Make the steps that are left, and write the file."""
    settings, main = run.settings, run.accelerator.is_main_process
    total, every = settings.training.steps, settings.samples.every
    sheets, folder = Sheets(run.kind.pipe, settings), settings.out / "samples"
    if last:
        run.load(kept.path(last))
    history = History(settings.out, last, main)
    bar = tqdm(
        range(last, total), settings.name, total, initial=min(last, total), disable=not main, mininterval=1.0,
        file=sys.stderr,
    )  # fmt: skip
    for step in bar:
        rate = run.rate
        loss, gradient = run.step(step)
        history.add(step + 1, loss, rate, gradient)
        bar.set_postfix(loss=f"{history.recent():.4f}", lr=f"{rate:.1e}", refresh=False)
        done = step + 1
        if main and every and done % every == 0 and done < total:
            with run.averaged():
                sheets.draw(f"step {done}", folder / f"step-{done:07}.png")
        if done % settings.checkpoints.every == 0 or done == total:
            _keep(run, kept, done, about)
    return _finish(run, sheets)


def _keep(run: Run, kept: Checkpoints, step: int, about: Mapping[str, Any]) -> None:
    """Write a checkpoint; with several processes, all of them into one folder."""
    accelerator = run.accelerator
    if accelerator.is_main_process:
        kept.begin(step)
    accelerator.wait_for_everyone()
    run.save(kept.part(step), {**about, "step": step})
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        kept.finish(step)


def _file(settings: Settings) -> Path:
    """Where the adapter is written: a file, or the folder that PEFT reads."""
    home = METHODS[settings.adapter.algorithm].home if settings.adapter.algorithm in METHODS else ""
    folder = (settings.adapter.dialect or (home if not settings.adapter.start_from else "")) == "peft"
    return settings.out / (settings.name if folder else f"{settings.name}.safetensors")


def _finish(run: Run, sheets: Sheets) -> Path:
    """Write the adapter and the last sheet, both of the averaged weights where there are any."""
    settings, file = run.settings, _file(run.settings)
    if run.accelerator.is_main_process:
        with run.averaged():
            file = run.adapters.save(settings.name, file, dialect=settings.adapter.dialect or None)
            sheets.draw("trained", settings.out / "samples" / "final.png")
    run.accelerator.wait_for_everyone()
    return Path(file)
