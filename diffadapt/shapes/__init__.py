"""Two small trained text-to-image pipelines, and adapters for them, that come with the package.

    from diffadapt import shapes

    pipe = diffadapt.enable(shapes.load("unet"))
    for sample in shapes.adapters("unet"):
        pipe.load_adapter(sample.path, adapter_name=sample.name, weight=0.0)
    pipe.adapters.set({"outline": 1.0})
    shapes.picture(pipe, "a red star on a blue background").save("star.png")

Shapes-UNet ("unet") is a StableDiffusionPipeline, Shapes-DiT ("dit") a StableDiffusion3Pipeline. They draw plain
shapes, 64 x 64 pixels, in a second or so on a CPU. Nothing is downloaded; `data/README.md` says what they can do.
"""

from __future__ import annotations

from diffadapt.shapes.embedded import load, picture
from diffadapt.shapes.index import PIPELINES, Sample, accuracy, adapters, settings, title

__all__ = ["PIPELINES", "Sample", "accuracy", "adapters", "load", "picture", "settings", "title"]
