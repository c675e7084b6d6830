"""Train a style on a folder of pictures with captions, and measure how much of it the pictures show afterwards.

By default everything is made on the spot: 48 pictures of the embedded Shapes world whose backgrounds are dotted (no
embedded pipeline or adapter knows that), a LoRA for Shapes-DiT, a few minutes on one core, without a network. It can be
stopped at any time; the same command goes on.

Run: python examples/train_style.py
     python examples/train_style.py --data pictures/ --model owner/model --prompts "a house by the sea"
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from shapes import concepts, trained

from diffadapt import shapes
from diffadapt.apps.trainer.loop import train
from diffadapt.apps.trainer.settings import Settings, settings_of

OUT = Path(__file__).resolve().parent.parent / "out" / "train-style"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trained.options(parser, model="dit", steps=600, out=OUT)
    return parser.parse_args()


def settings_for(chosen: argparse.Namespace, folder: Path) -> Settings:
    """What the trainer is told. folder: of the pictures."""
    embedded = chosen.model in shapes.PIPELINES
    given: dict[str, Any] = {
        "kind": "style", "model": chosen.model, "name": "style", "output": str(chosen.out.resolve()), "seed": 3,
        "data": {"folder": str(folder.resolve()), "resolution": 64 if embedded else 512},
        "adapter": {"algorithm": chosen.algorithm, "rank": 8},
        "training": {"steps": chosen.steps, "batch": 1, "learning_rate": 1e-4, "warmup": 20, "ema": 0.99},
        "samples": {"every": max(1, chosen.steps // 2), "prompts": chosen.prompts or []},
        "checkpoints": {"every": 50},
    }  # fmt: skip
    if embedded:
        # So small a model learns faster, and its base was trained on times that are normal in their logits.
        given["adapter"] |= trained.LAYERS[chosen.model]
        given["training"] |= {"batch": 8, "learning_rate": 3e-3}
        given["loss"] = {"timesteps": "logit_normal"}
        given["data"]["prompt_length"] = trained.LENGTHS[chosen.model]
        given["samples"]["prompts"] = chosen.prompts or concepts.style_prompts(6)
    return settings_of(given)


def main() -> int:
    """Train, and measure."""
    chosen = arguments()
    folder = chosen.data or concepts.style_pictures(chosen.out / "pictures", count=48)
    settings = settings_for(chosen, folder)
    trained.note(settings, chosen.out / "style.toml")
    file = train(settings)
    print(trained.curve(chosen.out), file, chosen.out / "samples" / "final.png", sep="\n")
    if chosen.model in shapes.PIPELINES and not chosen.data:
        prompts = concepts.style_prompts(chosen.measured)
        before, after = trained.scores(chosen.model, file, concepts.dotted_score, prompts)
        print(f"dots, by pictures of prompts that no training had: {before:.2f} before, {after:.2f} with the style")
        print(f"of the training pictures themselves: {trained.drawn(folder, concepts.dotted_score):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
