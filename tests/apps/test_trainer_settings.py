"""What the trainer's TOML may say, and what it answers to the rest."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from diffadapt.apps.trainer.command import changes, example
from diffadapt.apps.trainer.parsing import toml
from diffadapt.apps.trainer.settings import Settings, read_settings, settings_of
from diffadapt.command import main
from diffadapt.errors import SourceError, TrainingError

WRONG = {
    "unknown table": ({"trainig": {"steps": 3}}, "no setting trainig; training is meant?"),
    "unknown key": ({"training": {"learnin_rate": 1e-4}}, "training.learnin_rate; learning_rate is meant?"),
    "text for a number": ({"training": {"steps": "many"}}, "training.steps is 'many'; expected a whole number"),
    "true is no number": ({"training": {"batch": True}}, "training.batch is True; expected a whole number"),
    "fraction of a step": ({"training": {"steps": 1.5}}, "training.steps is 1.5; expected a whole number"),
    "too small": ({"training": {"steps": 0}}, "training.steps is 0; expected 1 or more"),
    "out of bounds": ({"data": {"prompt_dropout": 2}}, "data.prompt_dropout is 2; expected 0 to 0.99"),
    "no such choice": ({"training": {"schedule": "cosin"}}, "training.schedule is 'cosin'; expected one of 'constant'"),
    "one text for several": ({"samples": {"prompts": "a"}}, "samples.prompts is 'a'; expected a list of texts"),
    "numbers for texts": ({"samples": {"prompts": [1]}}, "samples.prompts is [1]; expected a list of texts"),
    "no table": ({"data": "pictures"}, "data is 'pictures'; expected a table, [data]"),
    "a kind of run": ({"kind": "portrait"}, "kind is 'portrait'; expected one of 'style', 'dreambooth'"),
    "no identifier": ({"kind": "dreambooth"}, "data.prompt is needed"),
    "a style's prior": ({"prior": {"prompts": ["a dog"]}}, "prior.prompts belongs to kind = 'dreambooth'"),
    "three betas": ({"training": {"betas": [0.9, 0.9, 0.9]}}, "training.betas is [0.9, 0.9, 0.9]; expected two"),
    "a path as a name": ({"name": "a/b"}, "name is 'a/b'; expected a word that can be a file's name"),
    "targets of a kind": ({"adapter": {"targets": 3}}, "adapter.targets is 3; expected a text or a list of texts or a"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_setting_is_named_with_what_is_expected(case: str) -> None:
    given, said = WRONG[case]
    with pytest.raises(TrainingError) as caught:
        settings_of(given)
    assert said in str(caught.value)


def test_what_is_given_is_taken_and_the_rest_is_as_ever() -> None:
    given = {
        "adapter": {"targets": {"unet": ["attn", "ff"]}, "rank": {"mid": 4, "default": 8}},
        "training": {"clip": 1},
    }
    settings = settings_of(given)
    assert settings.adapter.targets == {"unet": ["attn", "ff"]}
    assert settings.adapter.rank == {"mid": 4, "default": 8}
    assert settings.training.clip == 1.0
    assert isinstance(settings.training.clip, float)
    assert settings.training == Settings().training


def test_the_command_line_comes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('output = "here"\n[training]\nsteps = 7\nbatch = 2\n')
    told = changes(["training.steps=9", "data.prompt=a sks star", "adapter.tokens={'<star>' = 'circle'}"])
    settings = read_settings(file, told)
    assert (settings.training.steps, settings.training.batch) == (9, 2)
    assert settings.data.prompt == "a sks star"
    assert settings.adapter.tokens == {"<star>": "circle"}
    assert settings.out == tmp_path / "here"
    with pytest.raises(TrainingError, match="expected KEY=VALUE"):
        changes(["training.steps"])


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing\.toml: cannot be read"):
        read_settings(tmp_path / "nothing.toml")
    (tmp_path / "broken.toml").write_text("steps = = 3")
    with pytest.raises(SourceError, match=r"broken\.toml: no TOML.*line 1"):
        read_settings(tmp_path / "broken.toml")


@pytest.mark.parametrize("kind", ["style", "dreambooth"])
def test_the_example_has_every_key_and_is_read_again(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--example", kind]) == 0
    text = capsys.readouterr().out
    assert text == example(kind)
    assert settings_of(tomllib.loads(text)).kind == kind
    for key in ("learning_rate = 0.0001", "[prior]", "tokens = {}", "resolution = 512  # height and width in pixels"):
        assert key in text


def test_settings_written_are_the_settings_read() -> None:
    settings = settings_of({
        "kind": "dreambooth", "data": {"prompt": 'a "sks" döner\nbox'}, "prior": {"prompts": ["a", "b"]},
        "adapter": {"options": {"factor": 4, "weights": [0.5, 2]}, "tokens": {"<a b>": "c"}}, "loss": {"min_snr": 5},
    })  # fmt: skip
    assert settings_of(tomllib.loads(toml(settings))) == settings
    assert settings_of(tomllib.loads(toml(settings, changed=True))) == settings
    assert settings_of(tomllib.loads(toml(settings, comments=True))) == settings


def test_the_command_says_what_is_wrong_and_ends_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 1
    assert "a TOML file is needed" in capsys.readouterr().err
    file = tmp_path / "run.toml"
    file.write_text('[data]\nfolder = "nowhere"\n')
    assert main(["train", str(file)]) == 1
    said = capsys.readouterr()
    assert f"diffadapt train: {tmp_path / 'nowhere'}: no such folder of pictures" in said.err
    assert said.out == ""
