"""What the decoder language models that encode text have in common: the levels in front of `layers.{i}` move.

The bare model has none, the one with a language head has `model.`, those that see images have `language_model.` as
well, older transformers in the other order; trainers and ComfyUI write any of them. The canonical name is the measured
class's own; placement finds it in a pipeline whose class has other levels.
"""

from __future__ import annotations

from diffadapt.families.model import Model
from diffadapt.families.names import Names

LEVELS = ("model.language_model.", "language_model.model.", "language_model.", "model.", "")


def decoder(model: Model) -> Names:
    """The names of a decoder, with any of the levels or none."""
    return Names(model=model, levels=LEVELS)
