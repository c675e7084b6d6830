"""Mixers that are served, once for all tests of a process, and what tests ask of them."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client

from diffadapt.apps.mixer import mix
from diffadapt.apps.mixer.cards import Card
from diffadapt.apps.mixer.library import Held, Library
from diffadapt.apps.mixer.mix import Row
from diffadapt.apps.mixer.serving import Options, Served, serve
from diffadapt.apps.mixer.shelf import Shelf
from diffadapt.apps.mixer.studio import Drawn, Request, Studio
from diffadapt.recipe import Recipe

HTTP = httpx.Client(verify=False, timeout=60)
"""For servers of this machine: without the certificates of others, which take longer to read than an answer does."""
PROMPT = "a red star on a blue background"
QUICK = {"seed": 3, "steps": 2}


@pytest.fixture(scope="session", autouse=True)
def _out_of_the_way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What Gradio and the mixer keep goes to a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "XDG_CACHE_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture(scope="session")
def served() -> Iterator[Served]:
    """The mixer with its page, on the embedded UNet."""
    with serve(Options("unet", previews=False)) as found:
        found.endpoints.library.scan(wait=True)
        gc.collect()
        gc.freeze()  # Gradio and a pipeline are a million objects that stay: see tests/conftest.py
        yield found


@pytest.fixture(scope="session")
def headless() -> Iterator[Served]:
    """The mixer without a page."""
    with serve(Options("unet", headless=True)) as found:
        found.endpoints.library.scan(wait=True)
        yield found


@pytest.fixture(scope="session")
def studio(served: Served) -> Studio:
    found: Studio = served.endpoints.studio
    return found


@pytest.fixture(scope="session")
def shelf(served: Served) -> Shelf:
    """The embedded adapters."""
    return Shelf(served.endpoints.library)


def client_of(served: Served, **options: Any) -> Client:
    """A new client, with a session of its own."""
    return Client(served.url, verbose=False, ssl_verify=False, **options)


@pytest.fixture(params=["page", "headless"])
def either(request: pytest.FixtureRequest) -> Served:
    """Each way to serve."""
    found: Served = request.getfixturevalue("served" if request.param == "page" else "headless")
    return found


class Drawing:
    """Draws mixes of rows with few steps."""

    def __init__(self, studio: Studio, shelf: Shelf) -> None:
        self.studio, self.shelf = studio, shelf

    def recipe(self, rows: Sequence[Row], **settings: Any) -> Recipe:
        """The recipe of rows, its files found."""
        return self.shelf.resolve(mix.to_recipe(rows, PROMPT, QUICK | settings))

    def of(self, recipe: Recipe, **options: Any) -> Drawn:
        return self.studio.draw(Request(self.shelf.resolve(recipe)), **options)

    def __call__(self, *rows: Row, **settings: Any) -> Drawn:
        return self.of(self.recipe(rows, **settings))


@pytest.fixture(scope="session")
def draw(studio: Studio, shelf: Shelf) -> Drawing:
    """Draws on the served mixer's pipeline."""
    return Drawing(studio, shelf)


def row(name: str, weight: float = 1.0, **fields: Any) -> Row:
    """A row of an embedded adapter."""
    return replace(Row(name, name, weight=weight), **fields)


@pytest.fixture
def shelf_of() -> Callable[..., Shelf]:
    """Makes a shelf of cards without files."""

    def make(*cards: Card) -> Shelf:
        return Shelf(Library(()), {card.id: Held(Path(os.devnull), card) for card in cards})

    return make
