"""How much of everything is done: all of it, or a share, for trying the whole way out in a minute."""

from __future__ import annotations

share = 1.0
"""Set once, by the command line, before anything is trained."""


def some(number: int, least: int) -> int:
    """A share of a number of steps or pictures, but at least so many."""
    return number if share == 1.0 else max(least, round(number * share))
