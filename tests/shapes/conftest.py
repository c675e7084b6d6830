"""Lets the tests import examples/shapes. Its folder goes last: nothing else in it may hide a module of that name."""

from __future__ import annotations

import sys
from pathlib import Path

EXAMPLES = str(Path(__file__).resolve().parents[2] / "examples")
if EXAMPLES not in sys.path:
    sys.path.append(EXAMPLES)
