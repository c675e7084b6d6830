"""Addresses: of files in the Hub's cache, of links to the Hub, and what is fetched of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import diffadapt
from diffadapt.errors import RecipeError
from diffadapt.recipe import Part, Recipe
from diffadapt.recipe.sources import address_of, hub_address
from tests import tiny

COMMIT = "0123456789" * 4


@pytest.fixture
def cache(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache that holds one file of owner/name."""
    from huggingface_hub import constants

    snapshot = tmp_path / "models--owner--name" / "snapshots" / COMMIT / "loras"
    snapshot.mkdir(parents=True)
    shutil.copy(library / "ink.safetensors", snapshot / "ink.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return snapshot / "ink.safetensors"


def test_a_file_in_the_hubs_cache_has_the_hubs_address(cache: Path) -> None:
    pipe = diffadapt.enable(tiny.sd())
    pipe.load_adapter(cache, adapter_name="ink")
    recipe = Recipe.of(pipe)
    assert recipe.adapters[0].source == f"hf://owner/name@{COMMIT}/loras/ink.safetensors" == address_of(cache)
    again = diffadapt.enable(tiny.sd())
    recipe.apply(again)  # found in the cache; the Hub is not asked
    assert again.adapters["ink"].path == cache


def test_what_is_not_in_the_cache_is_fetched_only_if_asked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked: list[tuple[str, str]] = []

    def download(repo: str, filename: str, **options: object) -> str:
        asked.append((repo, filename))
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    part = Part(name="ink", source="https://huggingface.co/else/where/resolve/main/a/ink.safetensors?download=true")
    with pytest.raises(RecipeError, match="fetch=True"):
        Recipe(adapters=(part,)).apply(diffadapt.enable(tiny.sd()))
    assert asked == []
    pipe = diffadapt.enable(tiny.sd())
    Recipe(adapters=(part,)).apply(pipe, fetch=True)
    assert asked[0] == ("else/where", "a/ink.safetensors")
    wrong = Part(name="x", source=part.source, sha256="ab" * 32)
    with pytest.raises(RecipeError, match="expected abab"):
        Recipe(adapters=(wrong,)).apply(pipe, fetch=True)


def test_other_addresses_are_named_without_their_secrets() -> None:
    part = Part(name="ink", source="https://civitai.com/api/download/models/1?token=secret")
    with pytest.raises(RecipeError, match="download it") as caught:
        Recipe(adapters=(part,)).apply(diffadapt.enable(tiny.sd()), fetch=True)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://owner/name/a.pt", ("owner/name", None, "a.pt")),
        ("hf://owner/name@main/sub/a.pt", ("owner/name", "main", "sub/a.pt")),
        ("https://huggingface.co/owner/name/blob/main/a%20b.pt", ("owner/name", "main", "a b.pt")),
        ("hf://owner/name/../../a.pt", None),
        ("https://huggingface.co/owner/name/resolve/main/%2e%2e/a.pt", None),
        ("hf://owner/na--me/a.pt", None),
        ("https://example.org/owner/name/resolve/main/a.pt", None),
        ("https://huggingface.co.evil.org/owner/name/resolve/main/a.pt", None),
        ("/home/a.pt", None),
    ],
)
def test_addresses_are_read(text: str, address: tuple[str, str | None, str] | None) -> None:
    assert hub_address(text) == address
