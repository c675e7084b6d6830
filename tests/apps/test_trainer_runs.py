"""Whole runs on the embedded pipelines: what is learnt, what is written, what goes wrong and what is then said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

import diffadapt
from diffadapt import shapes
from diffadapt.apps.trainer.history import read
from diffadapt.apps.trainer.lesson import Lesson
from diffadapt.apps.trainer.loop import train
from diffadapt.errors import StackError, TargetError, TrainingError
from tests.apps.trained import same, settings, small

PROMPT = "a red star on a blue background"


@pytest.fixture(autouse=True)
def _another_precision() -> Iterator[None]:
    """Accelerate holds one precision for a whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(("name", "algorithm"), [("unet", "lokr"), ("dit", "lora")])
def test_a_run_learns_and_writes_what_it_promises(name: str, algorithm: str, tmp_path: Path) -> None:
    told = settings(
        tmp_path, model=name, adapter__algorithm=algorithm, adapter__rank=4, adapter__targets=["attn", "ff"],
        data__prompt_length=16, training__steps=20, training__batch=2, training__learning_rate=1e-2, training__warmup=3,
        samples__every=15, samples__prompts=[PROMPT, "stripes"], samples__options={"num_inference_steps": 2},
        checkpoints__every=5, data__prompt_dropout=0.0, loss__timesteps="logit_normal",
    )  # fmt: skip
    file = train(told)
    lines = read(told.out)
    assert [line["step"] for line in lines] == list(range(1, 21))
    first, last = (sum(line["loss"] for line in some) / 7 for some in (lines[:7], lines[-7:]))
    assert last < 0.8 * first
    assert lines[0]["learning_rate"] < lines[2]["learning_rate"] > lines[-1]["learning_rate"]
    assert sorted(path.name for path in (told.out / "checkpoints").iterdir()) == ["step-0000015", "step-0000020"]
    assert sorted(path.name for path in (told.out / "samples").iterdir()) == ["final.png", "step-0000015.png"]
    with Image.open(told.out / "samples" / "final.png") as sheet:
        assert sheet.width > 3 * 128
        assert sheet.height > 2 * 128
    pipe = diffadapt.enable(shapes.load(name))
    before = shapes.picture(pipe, PROMPT, num_inference_steps=2)
    assert pipe.load_adapter(file, strict=True).complete
    assert shapes.picture(pipe, PROMPT, num_inference_steps=2) != before


@pytest.mark.parametrize("name", ["xl", "flux"])
def test_the_other_kinds_of_pipelines_learn(name: str, tmp_path: Path) -> None:
    pipe = small(name)
    told = settings(tmp_path, data__prompt_length=16, training__steps=2, training__learning_rate=1e-2)
    report = diffadapt.enable(small(name)).load_adapter(train(told, pipe), strict=True)
    assert report.complete
    kept = load_file(told.out / "checkpoints" / "step-0000002" / "adapter.safetensors")
    ups = [tensor for key, tensor in kept.items() if key.endswith("/up")]
    assert ups
    assert all(tensor.any() for tensor in ups)


def test_the_result_has_the_averages_by_the_formula(tmp_path: Path) -> None:
    """EMAModel's: of step n with decay min(n / (9 + n), 0.5), where the first step is taken whole."""
    told = settings(
        tmp_path, training__steps=4, training__ema=0.15, checkpoints__every=1, checkpoints__keep=9,
        adapter__dialect="diffusers", adapter__targets="mid.**.attn1.to_q",
    )  # fmt: skip
    file = train(told)
    each = [load_file(told.out / "checkpoints" / f"step-{n:07}" / "adapter.safetensors") for n in range(1, 5)]
    average = dict(each[0])
    for number, now in enumerate(each[1:], 1):
        decay = min((1 + number) / (10 + number), 0.15)
        average = {key: decay * average[key] + (1 - decay) * now[key] for key in now}
    written = load_file(file)
    up = next(key for key in written if "lora_B" in key or "lora.up" in key)
    kept = next(tensor for key, tensor in average.items() if key.endswith("/up"))
    last = next(tensor for key, tensor in each[-1].items() if key.endswith("/up"))
    torch.testing.assert_close(written[up], kept)
    assert not torch.equal(written[up], last)


def test_dreambooth_draws_its_class_once_and_learns_a_word(tmp_path: Path) -> None:
    """A placeholder, the text encoder and the denoiser in one adapter; the class pictures are the base's own."""
    told = settings(
        tmp_path, kind="dreambooth", data__prompt="a <moko> on a blue background", prior__pictures=3,
        prior__prompts=[PROMPT, "a green heart on a white background"], samples__options={"num_inference_steps": 2},
        adapter__tokens={"<moko>": "star"}, adapter__targets={"unet": "attn", "text_encoder": "attn"},
        training__token_learning_rate=1e-3,
    )  # fmt: skip
    for text in (tmp_path / "pictures").glob("*.txt"):
        text.unlink()
    file = train(told)
    made = sorted((told.out / "class").glob("*.png"))
    assert [path.with_suffix(".txt").read_text().strip() for path in made] == [
        PROMPT, "a green heart on a white background", PROMPT,
    ]  # fmt: skip
    with Image.open(made[0]) as image:
        noise = told.seed * 1_000_003
        assert image.tobytes() == shapes.picture(shapes.load("unet"), PROMPT, noise, num_inference_steps=2).tobytes()
    pipe = diffadapt.enable(shapes.load("unet"))
    report = pipe.load_adapter(file, strict=True)
    assert report.embeddings
    assert set(report.components) == {"unet", "text_encoder"}
    star = pipe.text_encoder.get_input_embeddings()(torch.tensor(pipe.tokenizer("star").input_ids[1:2]))
    learnt = diffadapt.read_adapter(file).embeddings["<moko>"].vectors["text_encoder"].reshape(1, -1)
    assert 0 < (learnt - star).norm() < star.norm()
    times = [path.stat().st_mtime_ns for path in made]
    train(told, fresh=True)
    assert [path.stat().st_mtime_ns for path in made] == times


def test_the_prior_is_added_by_its_weight(tmp_path: Path) -> None:
    given = {"kind": "dreambooth", "data__prompt": "a moko", "training__steps": 1, "prior__pictures": 2}
    given |= {"samples__options": {"num_inference_steps": 1}, "checkpoints__every": 1}
    alone = settings(tmp_path, output=str(tmp_path / "alone"), **given)
    losses = []
    train(alone)
    losses.append(read(alone.out)[0]["loss"])
    for weight in (0.5, 1.0):
        told = settings(
            tmp_path, output=str(tmp_path / f"{weight}"), prior__prompts=[PROMPT], prior__weight=weight, **given
        )
        train(told)
        losses.append(read(told.out)[0]["loss"])
    assert losses[1] - losses[0] == pytest.approx((losses[2] - losses[0]) / 2, rel=1e-4)
    assert losses[2] > losses[0]


def test_less_memory_is_the_same_loss_and_half_precision_nearly(tmp_path: Path) -> None:
    found = []
    for name, changes in {
        "plain": {}, "checkpointed": {"training__gradient_checkpointing": True},
        "half": {"training__mixed_precision": "bf16"}, "base": {"training__dtype": "bfloat16"},
    }.items():  # fmt: skip
        told = settings(tmp_path, output=str(tmp_path / name), training__steps=2, **changes)
        train(told)
        AcceleratorState._reset_state(reset_partial_state=True)
        found.append([line["loss"] for line in read(told.out)])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=0.05)
    assert found[3] == pytest.approx(found[0], rel=0.05)
    assert found[2] != found[0]


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    """Of one picture, so that both see the same: the gradients are the means of four draws of noise."""
    told = settings(tmp_path, training__steps=2, training__accumulate=2, training__batch=2)
    train(told)
    lines = read(told.out)
    assert [line["step"] for line in lines] == [1, 2]
    single = settings(tmp_path, output=str(tmp_path / "single"), training__steps=4, training__learning_rate=0.0)
    train(single)
    losses = [line["loss"] for line in read(single.out)]
    assert lines[0]["loss"] == pytest.approx((losses[0] + losses[1]) / 2, rel=1e-5)


def _half(pipe: Any) -> None:
    pipe.unet.mid_block.half()


def _all_half(pipe: Any) -> None:
    pipe.unet.half()


def _frozen(pipe: Any) -> None:
    diffadapt.enable(pipe).load_adapter(shapes.adapters("unet")[0].path, adapter_name="adapter")


def _half_adapter(pipe: Any) -> None:
    diffadapt.enable(pipe).adapters.add("adapter", rank=2)
    for parameter in pipe.adapters.parameters("adapter"):
        parameter.data = parameter.data.half()


WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "unknown targets": (None, {"adapter__targets": "atention"}, TargetError, "'atention' names no module of the unet"),
    "a component that is not there": (
        None,
        {"adapter__targets": {"vision": "attn"}},
        TargetError,
        "no component 'vision'",
    ),
    "rank above a layer": (None, {"adapter__rank": 65}, TargetError, "can have 1 to 64. Give a smaller rank"),
    "unknown algorithm": (None, {"adapter__algorithm": "lorra"}, StackError, "No algorithm 'lorra'"),
    "unknown option": (None, {"adapter__options": {"factr": 4}}, StackError, "no option 'factr'"),
    "nothing to train": (_frozen, {}, TrainingError, "has no parameter to train. Add it with trainable=True"),
    "mixed dtypes": (_half, {}, TrainingError, "weights are of mixed dtypes: "),
    "float16 unscaled": (_all_half, {}, TrainingError, "Set training.dtype to 'bfloat16', or training.mixed_precision"),
    "an adapter in half": (_half_adapter, {}, TrainingError, "has parameters of float16"),
    "nothing to go on from": (None, {"resume": True}, TrainingError, "there is no checkpoint to go on from"),
}


@pytest.fixture(scope="module")
def unspoilt() -> Any:
    """A pipeline for tests that leave it as it is."""
    return small("unet")


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_trained_is_said_before_the_first_step(case: str, tmp_path: Path, unspoilt: Any) -> None:
    spoil, changes, kind, said = WRONG[case]
    pipe = unspoilt if spoil is None else small("unet")
    if spoil is not None:
        spoil(pipe)
    told = settings(tmp_path, **{key: value for key, value in changes.items() if key != "resume"})
    with pytest.raises(kind) as caught:
        train(told, pipe, resume=changes.get("resume", False))
    assert said in str(caught.value)
    assert not read(told.out)


def test_another_kind_of_pipeline_is_refused_with_those_that_are_known(tmp_path: Path, unspoilt: Any) -> None:
    from diffusers import StableDiffusionInpaintPipeline

    parts = {**unspoilt.components, "requires_safety_checker": False}
    other = StableDiffusionInpaintPipeline(**parts)
    with pytest.raises(
        TrainingError, match=r"A StableDiffusionInpaintPipeline cannot be trained here\. There are: Stable"
    ):
        train(settings(tmp_path), other)


def test_a_loss_that_is_no_number_stops_and_leaves_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = settings(tmp_path, training__steps=4, checkpoints__every=1)
    error = Lesson.error
    monkeypatch.setattr(
        Lesson,
        "error",
        lambda self, batch, place, what: error(self, batch, place, what) * (float("nan") if place.position == 2 else 1),
    )
    with pytest.raises(TrainingError, match=r"Step 3: the loss is nan at a learning rate of .*Try a lower") as caught:
        train(told)
    assert str(told.out / "checkpoints") in str(caught.value)
    assert [line["step"] for line in read(told.out)] == [1, 2]
    monkeypatch.undo()
    train(told, resume=True)
    assert [line["step"] for line in read(told.out)] == [1, 2, 3, 4]


def test_a_rate_that_is_far_too_high_is_told_so(tmp_path: Path) -> None:
    told = settings(tmp_path, training__learning_rate=1e25, training__steps=9, training__schedule="constant")
    with pytest.raises(TrainingError, match=r"is (nan|inf) at a learning rate of 1.0e\+25.*such as 1.0e\+24"):
        train(told)


def test_files_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    files = [
        train(settings(tmp_path, output=str(tmp_path / name), seed=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    first, second, third = map(load_file, files)
    assert same(first, second)
    assert not same(first, third)


def test_a_method_of_peft_is_written_as_the_folder_that_peft_reads(tmp_path: Path) -> None:
    folder = train(settings(tmp_path, adapter__algorithm="hra", training__steps=1))
    assert folder == tmp_path / "out" / "adapter"
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in folder.iterdir()}
    assert diffadapt.enable(small("unet")).load_adapter(folder, strict=True).complete


def test_a_file_of_another_dialect_is_trained_on(tmp_path: Path) -> None:
    """First without a rate, which leaves it as it is, then with one."""
    sample = next(sample for sample in shapes.adapters("unet") if sample.name == "frame")
    before = diffadapt.read_adapter(sample.path)
    given = {"adapter__start_from": str(sample.path), "adapter__dialect": "kohya", "training__steps": 1}
    still = diffadapt.read_adapter(train(settings(tmp_path, **given, training__learning_rate=0.0)))
    moved = diffadapt.read_adapter(train(settings(tmp_path, **given, output=str(tmp_path / "moved"))))
    assert set(still.targets) == set(moved.targets) == set(before.targets)
    for key, delta in before.targets.items():
        weight = torch.zeros(delta.shape_alone)
        was, kept, now = (adapter.targets[key].weight_delta(weight) for adapter in (before, still, moved))
        torch.testing.assert_close(kept, was)
        assert not torch.equal(now, was)


@pytest.mark.parametrize("algorithm", ["textual_inversion", "p_tuning"])
def test_a_word_alone_is_trained_and_diffusers_reads_it(algorithm: str, tmp_path: Path) -> None:
    told = settings(tmp_path, {"adapter": {"algorithm": algorithm, "tokens": {"<star>": "star"}}})
    file = train(told)
    pipe = small("unet")
    pipe.load_textual_inversion(str(file))
    row = pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer.convert_tokens_to_ids("<star>")]
    assert torch.equal(row.detach(), load_file(file)["<star>"].flatten().to(row.dtype))
