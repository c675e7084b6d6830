"""Writes what was trained as package data: pipelines in half precision, adapters, an index, a model card."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .measure import SETTINGS
from .recipes import Recipe

TITLES = {"unet": "Shapes-UNet", "dit": "Shapes-DiT"}


def pipeline(name: str, pipe: Any, out: Path) -> Path:
    """Save a pipeline, rounded to float16; its tokenizer also in the form of older versions."""
    folder = out / name
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.to(torch.float16)
        if isinstance(part, PreTrainedModel):
            # Transformers loads in the type that was saved, Diffusers in float32: rounded numbers pack as small.
            part.to(torch.float32)
    pipe.save_pretrained(folder, safe_serialization=True)
    for part in [part for part in pipe.components if part in ("tokenizer", "tokenizer_2")]:
        state = json.loads((folder / part / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in state["merges"]]
        (folder / part / "vocab.json").write_text(json.dumps(state["vocab"]), encoding="utf-8")
        (folder / part / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    index = folder / "model_index.json"  # this class reads tokenizer.json in every version
    index.write_text(index.read_text(encoding="utf-8").replace('"T5Tokenizer"', '"T5TokenizerFast"'), encoding="utf-8")
    return folder


def sample(recipe: Recipe, file: Path, out: Path, prompt: str, score: dict[str, float], loss: float) -> dict[str, Any]:
    """The index's entry of an adapter."""
    return {
        "name": recipe.style, "file": file.relative_to(out).as_posix(), "algorithm": recipe.algorithm,
        "trainer": f"{recipe.trainer} {version(recipe.trainer)}", "layout": recipe.layout, "concept": recipe.concept,
        "trigger": recipe.trigger, "prompt": prompt, "score": score,
        "training": {"steps": recipe.steps, "batch": 16, "rate": recipe.rate, "final_loss": round(loss, 4)},
    }  # fmt: skip


def entry(name: str, pipe: Any, accuracy: dict[str, float], adapters: list[dict[str, Any]]) -> dict[str, Any]:
    """The index's entry of a pipeline."""
    return {
        "title": TITLES[name], "class": type(pipe).__name__, "settings": SETTINGS[name], "accuracy": accuracy,
        "adapters": adapters,
    }  # fmt: skip


def index(pipelines: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write data/index.json and the model card, with the seconds that each piece of work took."""
    seconds = {file.stem: float(file.read_text()) for file in sorted(folder.glob("*.seconds"))}
    versions = {name: version(name) for name in ("torch", "diffusers", "transformers", "peft", "lycoris-lora")}
    whole = {"licence": "Apache-2.0", "made_with": versions, "seconds": seconds, "pipelines": pipelines}
    (folder / "data" / "index.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    (folder / "data" / "README.md").write_text(card(whole), encoding="utf-8")


def card(whole: dict[str, Any]) -> str:
    """The model card."""
    lines = [
        "---", "license: apache-2.0", "library_name: diffusers", "pipeline_tag: text-to-image", "---", "",
        "# Shapes", "",
        "Two small text-to-image pipelines and their adapters, trained from nothing on drawn pictures: one to three",
        "circles, squares, triangles, stars, crosses or hearts in eight colours on a plain background. Nothing that",
        "anybody else drew or wrote was used. `python examples/train_shapes.py` builds it again from fixed seeds;",
        "`index.json` holds the settings, scores and training of every part.", "",
    ]  # fmt: skip
    for name, pipe in whole["pipelines"].items():
        rates = ", ".join(f"{key} {value:.1%}" for key, value in pipe["accuracy"].items() if key != "prompts")
        lines += [
            f"## {pipe['title']} (`{name}`, {pipe['class']})", "",
            f"Follows {pipe['accuracy']['prompts']} held-out prompts (combinations never trained on): {rates}.", "",
            "| adapter | teaches | algorithm | written by | score without | with |", "|---|---|---|---|--:|--:|",
            *(
                f"| {a['name']} | {a['concept']} | {a['algorithm']} | {a['trainer']}, {a['layout']} layout "
                f"| {a['score']['without']:.2f} | {a['score']['with']:.2f} |"
                for a in pipe["adapters"]
            ), "",
        ]  # fmt: skip
    total = sum(whole["seconds"].values()) / 60
    lines += [f"The build took {total:.0f} minutes of one core, on two cores in parallel but for the autoencoder.", ""]
    return "\n".join(lines)
