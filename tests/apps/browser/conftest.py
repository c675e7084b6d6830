"""A mixer that is served, and a real browser that looks at it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright

from diffadapt.apps.mixer.serving import Options, Served, serve

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SHOTS = os.environ.get("DIFFADAPT_SCREENSHOTS")
"""A folder in which the journeys leave what they saw; they leave nothing where it is not set."""


@pytest.fixture(scope="session")
def mixer(served: Served) -> Iterator[Served]:
    """The mixer that all tests share; one of its own, with previews, where pictures of it are wanted."""
    if SHOTS is None:
        yield served
        return
    with serve(Options("unet", mcp=False)) as own:
        yield own


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium: the system's, else the one that Playwright brings."""
    system = next((path for name in NAMES if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=system, args=ARGUMENTS)
        except Error as error:
            pytest.fail(
                f"There is no Chromium: `python -m playwright install --with-deps chromium` brings one. {error}"
            )
        yield found
        found.close()


NAMELESS = """() => {
  const named = (node) =>
    (node.getAttribute("aria-label") || node.title || node.innerText || node.placeholder || "").trim()
    || (node.labels && [...node.labels].some((label) => label.innerText.trim()))
    || (node.getAttribute("aria-labelledby") && document.getElementById(node.getAttribute("aria-labelledby")));
  const shown = (node) => node.getClientRects().length && getComputedStyle(node).visibility !== "hidden";
  return JSON.stringify([...document.querySelectorAll("button, input:not([type=file]), select, textarea")]
    .filter((node) => shown(node) && !named(node)).map((node) => node.outerHTML.slice(0, 200)));
}"""
"""Gives what can be used on the page and has no name for those who do not see it, as JSON."""

DROP = """([name, text]) => {
  const moved = new DataTransfer();
  moved.items.add(new File([text], name, { type: "application/json" }));
  document.querySelector("#prompt").dispatchEvent(new DragEvent("drop", { dataTransfer: moved, bubbles: true }));
}"""
"""Drops a file with a name and a text on the prompt."""


class Tab:
    """One person's tab of the browser on the mixer. errors: what went wrong in the page's own scripts."""

    def __init__(self, browser: Browser, url: str, width: int = 1280, height: int = 1000, theme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._asked(request.url, url))
        self.page.goto(f"{url}?__theme={theme}")
        self.page.wait_for_selector(".da-card")

    def _asked(self, asked: str, own: str) -> None:
        if not asked.startswith((own, "data:", "blob:")):
            self.outside.append(asked)

    def add(self, name: str) -> None:
        self.page.get_by_role("button", name=f"Add {name} to the mix", exact=True).click()
        self.page.wait_for_selector(f'.da-row[data-name="{name}"]')

    @property
    def prompt(self) -> str:
        return self.page.locator("#prompt textarea").input_value()

    def write(self, prompt: str) -> None:
        self.page.locator("#prompt textarea").fill(prompt)

    def row(self, name: str) -> dict[str, object]:
        """What a row shows: whether it is on, its weight, its badge."""
        row = self.page.locator(f'.da-row[data-name="{name}"]')
        return {
            "on": row.locator("input[type=checkbox]").first.is_checked(),
            "weight": float(row.locator("input[type=range]").first.input_value()),
            "badge": row.locator(".da-badge").inner_text(),
        }

    def rows(self) -> list[str]:
        return [str(row.get_attribute("data-name")) for row in self.page.locator(".da-row").all()]

    def generate(self, number: int) -> str:
        """Draw, and give what the page says of the picture, which is to be the session's so-and-so-manieth."""
        self.page.locator("#generate").click()
        self.page.wait_for_selector(f"#progress >> text=#{number} ", timeout=60_000)
        return self.page.locator("#progress").inner_text()

    def open(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def picture(self) -> bytes:
        """The bytes behind the picture that is shown."""
        shown = self.page.locator(".da-picture img").first
        shown.wait_for()
        return self.page.request.get(str(shown.get_attribute("src"))).body()

    def shot(self, name: str, whole: bool = False) -> None:
        if SHOTS is not None:
            self.page.wait_for_timeout(600)
            self.page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=whole)

    def close(self) -> None:
        self.context.close()
        assert not self.errors
        assert not self.outside, "the page asks other machines"


@pytest.fixture
def tab(browser: Browser, mixer: Served) -> Iterator[Tab]:
    found = Tab(browser, mixer.url)
    yield found
    found.close()
