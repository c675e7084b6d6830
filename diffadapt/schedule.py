"""Strengths that follow the denoising: `pipe.adapters.set({"style": first(0.4), "hub": points([(0, 0.2), (1, 1.0)])})`.

See `diffadapt.inject.schedule` for what each means.
"""

from __future__ import annotations

from diffadapt.inject.schedule import Moment, Schedule, curve, first, from_json, points, steps, switch, window

__all__ = ["Moment", "Schedule", "curve", "first", "from_json", "points", "steps", "switch", "window"]
