"""Trains a method for fifty steps on an embedded pipeline, and has its home library read the file."""

from __future__ import annotations

import pytest
import torch
from lycoris.modules.ia3 import IA3Module

import diffadapt
from diffadapt import shapes
from diffadapt.training.methods import METHODS
from tests.shapes import home
from tests.training.shapes_runs import distance, model_of, task, train

LAYOUTS = {"diffusers": "Diffusers", "peft": "PEFT folder", "kohya": "LyCORIS", "lycoris": "LyCORIS wrapper"}
# Home libraries compute the same in another order of sums, in float32; of a change of the size of the activations.
TOLERANCE = 2e-4


def dialect_of(algorithm: str, kind: str) -> str:
    """The dialect of the home library: what LyCORIS itself reads on a DiT is its wrapper's, for Kohya's names there are
    those of the original code."""
    home_dialect = METHODS[algorithm].home
    return "lycoris" if home_dialect == "kohya" and kind == "dit" else home_dialect


def learns_and_is_read(algorithm, kind, tmp_path, monkeypatch):
    pipe = diffadapt.enable(shapes.load(kind))
    targets = {"targets": "norm"} if algorithm == "norm" else {}
    losses = train(pipe, "a", algorithm, kind, **targets)
    assert losses[-1] < 0.9 * losses[0]
    known = task(kind)
    with torch.no_grad():
        trained = known.call(model_of(pipe))
        dialect = dialect_of(algorithm, kind)
        path = tmp_path / ("trained" if dialect == "peft" else "trained.safetensors")
        pipe.adapters.save("a", path, dialect=dialect)
        theirs = shapes.load(kind)
        if algorithm == "ia3":
            # LyCORIS' own class has one tensor less than its loader hands it, and cannot be read by it at all.
            monkeypatch.setattr(IA3Module, "weight_list", ["weight"])
        if (algorithm, kind) == ("norm", "dit"):
            # The norms there are RMS norms, which LyCORIS has no module for.
            with pytest.raises(AttributeError, match="w_norm"):
                home.apply_file(theirs, path, LAYOUTS[dialect])
        else:
            home.apply_file(theirs, path, LAYOUTS[dialect])
            assert distance(trained, known.call(model_of(theirs)), known.base) < TOLERANCE
        again = diffadapt.enable(shapes.load(kind))
        assert again.load_adapter(path, adapter_name="b").complete
        assert distance(trained, known.call(model_of(again)), known.base) < TOLERANCE
