"""What people do with the mixer, done in a real browser."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, expect
from safetensors.torch import load_file, save_file

import diffadapt
from diffadapt import shapes
from diffadapt.apps.mixer.serving import Served
from diffadapt.recipe import Recipe, read_png
from tests.apps.browser.conftest import DROP, NAMELESS, Tab


def test_two_adapters_are_mixed_drawn_and_compared(tab: Tab) -> None:
    page = tab.page
    tab.add("outline")
    tab.add("dusk")
    expect(page.locator("#prompt textarea")).to_have_value("a red star on a blue background <lora:outline> <lora:dusk>")
    assert tab.row("outline")["badge"] == "116 of 116"
    first = tab.generate(1)
    assert "#1 outline 1, dusk 1, seed 0" in first
    before = tab.picture()
    dial = page.get_by_label("Weight of dusk", exact=True)
    dial.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#prompt textarea")).to_have_value(
        "a red star on a blue background <lora:outline> <lora:dusk:0.5>"
    )
    assert "#2 outline 1, dusk 0.5" in tab.generate(2)
    expect(page.locator(".da-picture img").first).not_to_have_attribute("src", "")
    page.wait_for_function("n => document.querySelectorAll('.da-picture img').length >= n", arg=1)
    assert tab.picture() != before
    tab.shot("mixer")
    tab.open("Pictures")
    expect(page.get_by_label("Before")).to_have_value("#1 outline 1, dusk 1, seed 0")
    expect(page.get_by_label("After")).to_have_value("#2 outline 1, dusk 0.5, seed 0")
    expect(page.locator("#history img")).to_have_count(2)
    tab.shot("pictures")


def test_the_prompt_and_the_rows_stay_in_step(tab: Tab) -> None:
    page = tab.page
    tab.write("a blue circle <lora:outline:0.3> and <lora:stripes:-0.5:lbw=FIRST>")
    page.wait_for_selector('.da-row[data-name="stripes"]')
    assert tab.row("outline") == {"on": True, "weight": 0.3, "badge": "116 of 116"}
    assert tab.row("stripes")["weight"] == -0.5
    page.locator('.da-row[data-name="stripes"] summary').click()
    expect(page.get_by_label("Block preset of stripes")).to_have_value("FIRST")
    page.get_by_label("Block mid of stripes").fill("0.5")
    page.keyboard.press("Tab")
    expect(page.locator("#prompt textarea")).to_have_value(
        "a blue circle <lora:outline:0.3> and <lora:stripes:-0.5:lbw=1,1,1,0,0.5,0,0,0>"
    )
    page.get_by_label("A weight of its own for the text encoders of stripes").check()
    page.get_by_label("First step of stripes, percent").fill("20")
    page.keyboard.press("Tab")
    expect(page.locator("#prompt textarea")).to_have_value(
        "a blue circle <lora:outline:0.3> and <lora:stripes:-0.5:lbw=1,1,1,0,0.5,0,0,0:start=0.2>"
    )
    tab.write("a blue circle <lora:stripes:-0.5>")
    expect(page.get_by_label("Use outline", exact=True)).not_to_be_checked()
    page.get_by_label("Use outline", exact=True).check()
    expect(page.locator("#prompt textarea")).to_have_value("a blue circle <lora:outline:0.3> <lora:stripes:-0.5>")
    page.get_by_role("button", name="Move stripes up").click()
    assert tab.rows() == ["stripes", "outline"]
    expect(page.locator("#prompt textarea")).to_have_value("a blue circle <lora:stripes:-0.5> <lora:outline:0.3>")
    tab.write("a blue circle <lora:nobody:0.5> <lora:stripes:-0.5>")
    page.wait_for_selector('.da-row[data-name="nobody"]')
    assert tab.row("nobody")["badge"] == "not in the library"
    page.locator("#generate").click()
    expect(page.locator("#progress")).to_contain_text("The library does not have 'nobody'")


def test_why_and_checks_are_one_click_away(tab: Tab) -> None:
    tab.add("zibo")
    tab.add("shadow")
    tab.page.get_by_role("button", name="zibo: applied 143 of 143").click()
    expect(tab.page.locator("#why")).to_contain_text("In force: 100% of what the file does at strength 1.")
    expect(tab.page.locator("#why tbody tr")).not_to_have_count(0)
    tab.page.get_by_role("button", name="Balance the weights").click()
    expect(tab.page.locator("#prompt textarea")).not_to_have_value(
        "a red star on a blue background <lora:zibo> <lora:shadow>"
    )
    weights = [float(str(tab.row(name)["weight"])) for name in ("zibo", "shadow")]
    assert sum(weights) == pytest.approx(2.0, abs=0.1)
    assert weights[0] != weights[1]
    tab.page.get_by_role("button", name="Check the mix").click()
    expect(tab.page.locator("#why tbody")).to_have_count(0)
    expect(tab.page.locator("#why .da-notes")).to_be_visible()
    tab.open("Understand")
    tab.page.get_by_role("button", name="Look at the mix").click()
    tab.page.wait_for_selector("#heat svg")
    expect(tab.page.locator("#alike svg")).to_have_count(2)
    tab.page.get_by_label("Spectra of").click()
    tab.page.get_by_role("option", name="zibo").click()
    expect(tab.page.locator("#spectra polyline")).to_have_count(12)
    tab.shot("understand")


def test_a_mix_is_saved_and_comes_back_from_its_picture(
    tab: Tab, browser: Browser, mixer: Served, tmp_path: Path
) -> None:
    page = tab.page
    tab.write("a green cross <lora:glow:0.7> <lora:frame:0.4:lbw=LAST>")
    page.wait_for_selector('.da-row[data-name="frame"]')
    tab.generate(1)
    picture = tmp_path / "kept.png"
    picture.write_bytes(tab.picture())
    recipe = read_png(picture)
    assert recipe is not None
    assert [part.name for part in recipe.adapters] == ["glow", "frame"]
    assert "Lora hashes" in str(Image.open(picture).text["parameters"])
    tab.open("Keep")
    page.get_by_role("button", name="Make the file").click()
    with page.expect_download() as made:
        page.locator('a[download="mix-kohya.safetensors"]').click()
    adapter = diffadapt.read_adapter(made.value.path())
    assert adapter.dialect == "kohya"
    assert len(adapter.targets) >= 116
    tab.shot("keep")
    other = Tab(browser, mixer.url)
    other.open("Keep")
    other.page.locator("#restore input[type=file]").set_input_files(picture)
    expect(other.page.locator("#restored")).to_contain_text("The mix is back: glow, frame.")
    other.open("Mix")
    assert other.prompt.startswith("a green cross")
    assert other.row("glow")["weight"] == 0.7
    other.generate(1)
    assert _pixels(other.picture()) == _pixels(picture.read_bytes())
    other.close()


def _pixels(png: bytes) -> bytes:
    return Image.open(io.BytesIO(png)).convert("RGB").tobytes()


def test_a_recipe_that_is_dropped_anywhere_brings_its_mix_back(tab: Tab) -> None:
    recipe = Recipe.from_prompt("a pink heart <lora:dusk:0.6>", seed=3, steps=7)
    tab.page.evaluate(DROP, ["mix.json", recipe.to_json()])
    tab.page.wait_for_selector('.da-row[data-name="dusk"]')
    assert tab.prompt == "a pink heart <lora:dusk:0.6>"
    assert tab.row("dusk")["weight"] == 0.6


def test_a_recipe_of_a_file_that_is_missing_names_it(tab: Tab, tmp_path: Path) -> None:
    recipe = Recipe.from_prompt("a star <lora:gone:0.5> <lora:glow>", seed=3, steps=7)
    path = recipe.save(tmp_path / "mix.json")
    tab.open("Keep")
    tab.page.locator("#restore input[type=file]").set_input_files(path)
    expect(tab.page.get_by_text("The library does not have 'gone'")).to_be_visible()
    tab.open("Mix")
    assert tab.rows() == ["gone", "glow"]


def test_bad_uploads_are_sentences_and_good_ones_are_mixed(tab: Tab, tmp_path: Path) -> None:
    page = tab.page
    upload = page.locator('input[type=file][accept*="safetensors"]')
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"<!DOCTYPE html><html>not found</html>" * 40)
    upload.set_input_files(broken)
    expect(page.get_by_text("broken.safetensors:").first).to_be_visible()
    assert tab.rows() == []
    good = tmp_path / "mine.safetensors"
    hostile = "<img src=x onerror='window.hit=1'>${window.hit=2}{{hit}}"
    save_file(load_file(shapes.adapters("unet")[0].path), good, {"modelspec.trigger_phrase": hostile})
    page.reload()
    page.wait_for_selector(".da-card")
    upload.set_input_files(good)
    page.wait_for_selector('.da-row[data-name="mine"]')
    assert hostile in page.locator('.da-row[data-name="mine"] .da-word').inner_text()
    assert page.evaluate("window.hit") is None
    tab.generate(1)


def test_two_sessions_keep_apart(tab: Tab, browser: Browser, mixer: Served, tmp_path: Path) -> None:
    other = Tab(browser, mixer.url)
    tab.add("outline")
    other.add("duotone")
    own = tmp_path / "secret.safetensors"
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(2, 80, 1, 1),
               "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.zeros(80, 2, 1, 1)}, own)  # fmt: skip
    other.page.locator('input[type=file][accept*="safetensors"]').set_input_files(own)
    other.page.wait_for_selector('.da-row[data-name="secret"]')
    tab.page.locator("#generate").click()
    other.page.locator("#generate").click()
    for one, said in ((tab, "outline 1, seed"), (other, "duotone 1, secret 1, seed")):
        expect(one.page.locator("#progress")).to_contain_text(f"#1 {said}", timeout=60_000)
    assert tab.rows() == ["outline"]
    assert other.rows() == ["duotone", "secret"]
    tab.page.get_by_label("Search").fill("secret")
    expect(tab.page.locator(".da-told")).to_contain_text("0 of 8 adapters")
    tab.open("Pictures")
    expect(tab.page.locator("#history img")).to_have_count(1)
    other.close()


def test_a_run_can_be_stopped(tab: Tab) -> None:
    tab.add("outline")
    tab.page.get_by_role("button", name="Settings").first.click()
    tab.page.get_by_label("number input for Steps").fill("100")
    tab.page.locator("#generate").click()
    expect(tab.page.locator("#progress")).to_contain_text("Step")
    tab.page.locator("#stop").click()
    expect(tab.page.locator("#progress")).to_contain_text("Stopped.")
    tab.page.get_by_label("number input for Steps").fill("4")
    tab.page.get_by_label("merged", exact=True).check()
    tab.generate(1)


def test_grids_and_conversions(tab: Tab) -> None:
    page = tab.page
    tab.add("outline")
    tab.open("Grid")
    expect(page.get_by_label("Columns: of which adapter")).to_have_value("outline")
    page.locator("#x-values input, #x-values textarea").fill("0, 1")
    page.get_by_role("button", name="Draw the grid").click()
    expect(page.get_by_text("2 pictures")).to_be_visible(timeout=60_000)
    tab.shot("grid")
    tab.open("Convert")
    page.get_by_label("Adapters", exact=True).click()
    page.get_by_role("option", name="outline").click()
    page.get_by_role("option", name="stripes").click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Convert", exact=True).click()
    expect(page.locator("#report tbody tr")).to_have_count(2)
    expect(page.locator("#report tbody")).to_contain_text("written")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_narrow_screen_and_everything_has_a_name(browser: Browser, mixer: Served, theme: str) -> None:
    tab = Tab(browser, mixer.url, 400, 860, theme)
    tab.add("zibo")
    tab.page.locator('.da-row[data-name="zibo"] summary').click()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 400
    names = json.loads(tab.page.evaluate(NAMELESS))
    assert names == []
    tab.shot(f"narrow-{theme}", whole=True)
    tab.page.get_by_role("button", name="More tabs").click()
    tab.page.get_by_role("button", name="Convert").or_(tab.page.get_by_role("tab", name="Convert")).first.click()
    expect(tab.page.get_by_label("Adapters", exact=True)).to_be_visible()
    tab.close()


def test_everything_on_every_tab_has_a_name_and_options_reach_the_method(tab: Tab) -> None:
    tab.add("outline")
    tab.add("frame")
    tab.page.get_by_role("button", name="Settings").first.click()
    for name in ("Pictures", "Grid", "Understand", "Keep", "Convert", "Mix"):
        tab.open(name)
        tab.page.wait_for_timeout(300)
        assert json.loads(tab.page.evaluate(NAMELESS)) == [], name
    tab.page.get_by_label("Method", exact=True).click()
    tab.page.get_by_role("option", name="ties", exact=True).click()
    tab.page.get_by_label("Options of the method").fill("density=2")
    tab.page.locator("#generate").click()
    expect(tab.page.locator("#progress")).to_contain_text("density")
    tab.page.get_by_label("Options of the method").fill("density=0.5")
    tab.generate(1)
    tab.open("Pictures")
    tab.page.locator("#history button.thumbnail-item, #history .thumbnail-item").first.click()
    expect(tab.page.locator(".cm-content")).to_contain_text('"density": 0.5')


def test_the_keyboard_alone_makes_a_picture(tab: Tab) -> None:
    page = tab.page
    page.get_by_label("Search").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == "Add glow to the mix":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector('.da-row[data-name="glow"]')
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "generate":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("#progress >> text=#1 glow 1", timeout=60_000)
