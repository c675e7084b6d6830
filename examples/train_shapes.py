"""Builds what `diffadapt.shapes` carries, from nothing: two text-to-image pipelines with adapters of every kind.

    python examples/train_shapes.py --out diffadapt/shapes/data

Everything is drawn and trained on the spot, from fixed seeds, in under an hour on two CPU cores: the autoencoder first,
then the two pipelines side by side, each followed by its adapters and their scores. It can be stopped and called again:
checkpoints are in `out/shapes`, and what is finished is not done twice. Needs peft and lycoris-lora (the extra `test`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from shapes import adapters, base, effort, export, measure, vae
from shapes.recipes import RECIPES, Recipe

WORK = Path(__file__).resolve().parent.parent / "out" / "shapes"
NAMES = ("unet", "dit")


def timed(folder: Path, name: str, work: Any) -> Any:
    """Do a piece of work and add its seconds to the folder's times."""
    start = time.monotonic()
    result = work()
    file = folder / f"{name}.seconds"
    before = float(file.read_text()) if file.is_file() else 0.0
    file.write_text(f"{before + time.monotonic() - start:.1f}")
    return result


def autoencoder(folder: Path) -> None:
    """Train the autoencoder and encode the training pictures."""
    if not (folder / "vae").is_dir():
        vae.train(folder).save_pretrained(folder / "vae.part")
        (folder / "vae.part").rename(folder / "vae")
    base.latents(folder)


def one_pipeline(name: str, folder: Path, recipes: Sequence[Recipe]) -> None:
    """Train a pipeline and its adapters; measure both on what was saved."""
    from diffusers import DiffusionPipeline

    out = folder / "data"

    def load() -> Any:
        pipe = DiffusionPipeline.from_pretrained(out / name, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    if not (out / name / "model_index.json").is_file():
        timed(folder, name, lambda: export.pipeline(name, base.train(name, folder), out))
    file = folder / f"{name}-accuracy.json"
    if not file.is_file():
        file.write_text(json.dumps(timed(folder, f"{name}-accuracy", lambda: measure.accuracy(name, load()))))
    print(name, file.read_text(), flush=True)
    entries = [
        timed(folder, f"{name}-{recipe.style}", lambda r=recipe: _adapter(name, r, load, folder)) for recipe in recipes
    ]
    whole = export.entry(name, load(), json.loads(file.read_text()), entries)
    (folder / f"{name}.json").write_text(json.dumps(whole))


def _adapter(name: str, recipe: Any, load: Any, folder: Path) -> dict[str, Any]:
    kept = folder / f"{name}-{recipe.style}.json"
    if not kept.is_file():
        file, loss = adapters.train(name, load(), recipe, folder, folder / "data" / "adapters" / name)
        taken = {json.loads(other.read_text()).get("prompt") for other in folder.glob(f"{name}-*.json")}
        score, prompt = measure.effect(name, load(), recipe, file, taken)
        entry = export.sample(recipe, file, folder / "data", prompt, score, loss)
        kept.write_text(json.dumps(entry))
    found: dict[str, Any] = json.loads(kept.read_text())
    print(name, recipe.style, recipe.algorithm, found["score"], flush=True)
    return found


def main() -> int:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="where checkpoints go (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="the folder that is replaced by the result (default: WORK/data)")
    parser.add_argument("--only", choices=("vae", *NAMES), help=argparse.SUPPRESS)  # one process's share
    parser.add_argument("--styles", nargs="*", help="only the adapters of these styles, to try it out")
    parser.add_argument("--share", type=float, default=1.0, help="do only this share of all steps, to try it out")
    chosen = parser.parse_args()
    effort.share = chosen.share
    chosen.work.mkdir(parents=True, exist_ok=True)
    if chosen.only == "vae":
        timed(chosen.work, "vae", lambda: autoencoder(chosen.work))
        return 0
    if chosen.only:
        torch.set_num_threads(1)  # two processes gain more from two cores than one with two threads
        recipes = [recipe for recipe in RECIPES if not chosen.styles or recipe.style in chosen.styles]
        one_pipeline(chosen.only, chosen.work, recipes)
        return 0
    for parts in (("vae",), NAMES):
        running = [subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--only", part]) for part in parts]
        codes = [process.wait() for process in running]
        if any(codes):
            return 1
    export.index({name: json.loads((chosen.work / f"{name}.json").read_text()) for name in NAMES}, chosen.work)
    if chosen.out:
        shutil.rmtree(chosen.out, ignore_errors=True)
        shutil.copytree(chosen.work / "data", chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
