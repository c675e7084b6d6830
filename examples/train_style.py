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
from diffadapt.apps.trainer.parsing import toml
from diffadapt.apps.trainer.settings import settings_of

OUT = Path(__file__).resolve().parent.parent / "out" / "train-style"


def main() -> int:
    """Read the command line, train, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dit", help="an embedded pipeline (unet, dit), a folder or a Hub id")
    parser.add_argument("--data", type=Path, help="pictures with their captions beside them (default: drawn ones)")
    parser.add_argument("--prompts", nargs="+", help="what the sheet of samples shows")
    parser.add_argument("--algorithm", default="lora", help="as in `pipe.adapters.add` (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="of training (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of the results (default: %(default)s)")
    chosen = parser.parse_args()

    embedded = chosen.model in shapes.PIPELINES
    folder = chosen.data or concepts.style_pictures(chosen.out / "pictures", count=48)
    shown = chosen.prompts or (concepts.style_prompts(6) if embedded else [])
    given: dict[str, Any] = {
        "kind": "style", "model": chosen.model, "name": "style", "output": str(chosen.out.resolve()), "seed": 3,
        "data": {"folder": str(folder.resolve()), "resolution": 64 if embedded else 512},
        "adapter": {"algorithm": chosen.algorithm, "rank": 8},
        "training": {"steps": chosen.steps, "batch": 1, "learning_rate": 1e-4, "warmup": 20, "ema": 0.99},
        "samples": {"every": max(1, chosen.steps // 2), "prompts": shown},
        "checkpoints": {"every": 50},
    }  # fmt: skip
    if embedded:
        # So small a model learns faster, and its base was trained on times that are normal in their logits.
        given["adapter"]["targets"] = ["attn", "ff"]
        given["training"] |= {"batch": 8, "learning_rate": 4e-3}
        given["loss"] = {"timesteps": "logit_normal"}
        given["data"]["prompt_length"] = trained.LENGTHS[chosen.model]
    settings = settings_of(given)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "style.toml").write_text(toml(settings, changed=True), encoding="utf-8")
    print(f"The same run: diffadapt train {chosen.out / 'style.toml'}")

    file = train(settings)
    print(trained.curve(chosen.out), file, chosen.out / "samples" / "final.png", sep="\n")
    if embedded and not chosen.data:
        before, after = trained.scores(chosen.model, file, concepts.dotted_score, concepts.style_prompts(20))
        print(
            f"dots, by the pictures of 20 prompts that no training had: {before:.2f} before, {after:.2f} with the style"
        )
        print(f"of the training pictures themselves: {trained.drawn(folder, concepts.dotted_score):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
