"""Teach a pipeline one subject by a word for it, from eight pictures, without its forgetting what it knew.

By default everything is made on the spot: the "moko" (a crescent, yellow above and red below) on four backgrounds, for
Shapes-UNet, in a few minutes on one core and without a network. Half of every batch are pictures that the pipeline drew
itself beforehand (DreamBooth's prior preservation). It can be stopped at any time; the same command goes on.

Run: python examples/train_dreambooth.py
     python examples/train_dreambooth.py --data dog/ --model owner/model --prompt "a photo of sks dog" \
         --class-prompt "a photo of a dog"
"""

from __future__ import annotations

import argparse
import sys
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from shapes import concepts, trained

from diffadapt import shapes
from diffadapt.apps.trainer.loop import train
from diffadapt.apps.trainer.settings import Settings, settings_of

OUT = Path(__file__).resolve().parent.parent / "out" / "train-dreambooth"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trained.options(parser, model="unet", steps=400, out=OUT)
    add = parser.add_argument
    add("--prompt", default=f"a {concepts.SUBJECT}", help="the subject's, of pictures without a caption")
    add("--class-prompt", nargs="+", help="of the class, for prior preservation")
    add("--class-pictures", type=int, default=48, help="how many of the class are drawn (default: %(default)s)")
    return parser.parse_args()


def settings_for(chosen: argparse.Namespace, folder: Path) -> Settings:
    """What the trainer is told. folder: of the pictures."""
    embedded = chosen.model in shapes.PIPELINES
    classes = concepts.class_prompts(chosen.class_pictures) if embedded else []
    given: dict[str, Any] = {
        "kind": "dreambooth", "model": chosen.model, "name": "subject", "output": str(chosen.out.resolve()), "seed": 4,
        "data": {"folder": str(folder.resolve()), "prompt": chosen.prompt, "resolution": 64 if embedded else 512},
        "prior": {"prompts": chosen.class_prompt or classes, "pictures": chosen.class_pictures},
        "adapter": {"algorithm": chosen.algorithm, "rank": 8},
        "training": {"steps": chosen.steps, "batch": 1, "learning_rate": 1e-4, "warmup": 20, "ema": 0.99},
        "samples": {"every": max(1, chosen.steps // 2), "prompts": chosen.prompts or [chosen.prompt]},
        "checkpoints": {"every": 50},
    }  # fmt: skip
    if embedded:
        # So small a model learns faster, and its base was trained on times that are normal in their logits.
        given["adapter"]["targets"] = ["attn", "ff"]  # more layers learn it faster, and take more of the rest along
        given["training"] |= {"batch": 4, "learning_rate": 4e-3}
        given["loss"] = {"timesteps": "logit_normal"}
        given["data"]["prompt_length"] = trained.LENGTHS[chosen.model]
        shown = [*concepts.subject_prompts(), "a red star on a blue background"]
        given["samples"]["prompts"] = chosen.prompts or shown
    return settings_of(given)


def main() -> int:
    """Train, and measure."""
    chosen = arguments()
    folder = chosen.data or concepts.subject_pictures(chosen.out / "pictures")
    settings = settings_for(chosen, folder)
    trained.note(settings, chosen.out / "dreambooth.toml")
    file = train(settings)
    print(trained.curve(chosen.out), file, chosen.out / "samples" / "final.png", sep="\n")
    if chosen.model in shapes.PIPELINES and not chosen.data:
        measure(chosen.model, file, chosen.measured)
    return 0


def measure(model: str, file: Path, count: int) -> None:
    """Print how well the subject shows, and whether the pipeline draws other things as before."""
    known, unseen = ([concepts.subject_prompt(ground) for ground in some] for some in (concepts.KNOWN, concepts.UNSEEN))
    for words, prompts in (("backgrounds of its pictures", known), ("backgrounds that it never had", unseen)):
        prompts = list(islice(cycle(prompts), count))
        before, after = trained.scores(model, file, concepts.moko_score, prompts)
        print(f"{concepts.SUBJECT}, on {words}: {before:.2f} before, {after:.2f} with the adapter")
    before, after = trained.followed(model, file, count)
    print(f"other prompts that are followed: {before:.0%} before, {after:.0%} with the adapter")


if __name__ == "__main__":
    sys.exit(main())
