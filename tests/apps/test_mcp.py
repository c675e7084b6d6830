"""The mixer as MCP tools, with the protocol's own client."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from PIL import Image

from diffadapt.apps.mixer.serving import Served
from diffadapt.recipe import read_png
from tests.apps.conftest import HTTP, Drawing, row

Found = TypeVar("Found")


def with_client(url: str, ask: Callable[[ClientSession], Awaitable[Found]]) -> Found:
    """What a client of the server finds out."""

    async def talk() -> Found:
        async with (
            streamablehttp_client(f"{url}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as client,
        ):
            await client.initialize()
            return await ask(client)

    with ThreadPoolExecutor(1) as thread:  # a browser of another test may keep this thread's loop running
        return thread.submit(asyncio.run, talk()).result()


def call(url: str, name: str, **given: Any) -> Any:
    """The answer of one tool."""
    return with_client(url, lambda client: client.call_tool(name, given))


def test_the_tools_are_the_endpoints(either: Served) -> None:
    tools = with_client(either.url, lambda client: client.list_tools()).tools
    assert sorted(tool.name for tool in tools) == sorted(one.name for one in either.endpoints.all())
    for tool in tools:
        assert tool.description
        assert "Args" not in tool.description
        properties = tool.inputSchema.get("properties", {})
        assert "request" not in properties
        for name, one in properties.items():
            assert one["type"] in ("string", "integer", "number", "boolean", "array"), (tool.name, name)
            assert one["description"], (tool.name, name)


def test_adapters_are_listed_and_weighed(either: Served) -> None:
    found = call(either.url, "list_adapters", search="glow")
    assert not found.isError
    assert "'id': 'glow'" in found.content[0].text
    weighed = call(either.url, "balance", mix_text="a star <lora:glow> <lora:frame>", rule="constant_total")
    assert weighed.content[0].text == "a star <lora:glow> <lora:frame>"


def test_a_picture_is_made(either: Served, draw: Drawing, tmp_path: Path) -> None:
    mix = "a red star on a blue background <lora:glow:0.5>"
    found = call(either.url, "generate", mix_text=mix, seed=3, steps=2)
    assert not found.isError
    image = next(one for one in found.content if one.type == "image")
    with Image.open(io.BytesIO(base64.b64decode(image.data))) as picture:
        assert picture.tobytes() == draw(row("glow", 0.5)).picture.tobytes()
    addresses = [one.text for one in found.content if one.type == "text"]
    assert addresses
    downloaded = HTTP.get(addresses[0].split()[-1])
    (tmp_path / "x.png").write_bytes(downloaded.content)
    recipe = read_png(tmp_path / "x.png")
    assert recipe is not None
    assert [part.name for part in recipe.adapters] == ["glow"]


@pytest.mark.parametrize(
    ("name", "given", "word"),
    [
        ("generate", {"mix_text": "a <lora:nope>"}, "does not have 'nope'"),
        ("generate", {"mix_text": "a", "steps": "many"}, "many"),
        ("upload_adapter", {"file": "/etc/passwd"}, "http"),
        ("read_recipe", {"file": "file:///etc/passwd"}, "http"),
        ("read_recipe", {"file": {"path": "/etc/passwd"}}, "string"),
        ("nothing", {}, "nothing"),
    ],
)
def test_errors_are_sentences(served: Served, name: str, given: dict[str, Any], word: str) -> None:
    found = call(served.url, name, **given)
    assert found.isError
    assert word in found.content[0].text
    assert "Traceback" not in found.content[0].text
    assert "root:" not in found.content[0].text
