"""Strengths by component, block and module: whole path segments, and a misspelling is an error."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from diffadapt import StackError
from diffadapt.inject.scaling import Targets, multipliers
from tests import tiny
from tests.zoo import ZOO
from tests.zoo.trainers import peft_file, pipeline, trainable

PATHS = [
    "conv_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.1.transformer_blocks.10.attn2.add_to_q",
    "down_blocks.10.resnets.0.conv1",
    "mid_block.attentions.0.transformer_blocks.1.ff.net.2",
    "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0",
    "up_blocks.1.resnets.2.conv2",
]
TARGETS = [("unet", path) for path in PATHS] + [("text_encoder", "text_model.encoder.layers.0.mlp.fc1")]
KNOWN = {"unet": PATHS, "text_encoder": ["text_model.encoder.layers.0.mlp.fc1"]}


def values(strength):
    return multipliers(strength, Targets(TARGETS), tuple(KNOWN), lambda: KNOWN)


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (0.7, [0.7] * 9),
        ({"unet": 0.5}, [0.5] * 8 + [1.0]),
        ({"unet": 0.5, "text_encoder": 0.0}, [0.5] * 8 + [0.0]),
        ({"default": 0.1, "text_encoder": 0.9}, [0.1] * 8 + [0.9]),
        ({"unet": {"down": 0.2, "mid": 0.6, "up": 0.9}}, [1.0, 0.2, 0.2, 0.2, 0.6, 0.9, 0.9, 0.9, 1.0]),
        ({"unet": {"default": 0.0, "mid": 1.0}}, [0, 0, 0, 0, 1, 0, 0, 0, 1.0]),
        # block_1 is not block 10, to_q is not add_to_q
        ({"unet": {"down": {"block_1": 0.3}}}, [1, 1, 0.3, 1, 1, 1, 1, 1, 1]),
        ({"unet": {"to_q": 0.4}}, [1, 0.4, 1, 1, 1, 0.4, 1, 1, 1]),
        ({"unet": {"up.0": 0.4, "up.0.attentions.1": 0.7}}, [1, 1, 1, 1, 1, 0.4, 0.7, 1, 1]),
        ({"unet": {"up": {"block_0": [0.1, 0.2], "block_1": 0.3}}}, [1, 1, 1, 1, 1, 0.1, 0.2, 0.3, 1]),
        ({"down": 0.5, "unet": {"attn1": 0.1}}, [1, 0.1, 0.5, 0.5, 1, 0.1, 0.1, 1, 1]),
        ({"unet": {"down.*.attentions": 0.2}}, [1, 0.2, 0.2, 1, 1, 1, 1, 1, 1]),
        ({"unet": {"to_out.0": 0}}, [1, 1, 1, 1, 1, 1, 0, 1, 1]),
        (-0.5, [-0.5] * 9),
        ({"unet": {"down": -0.2, "default": -1.0}}, [-1, -0.2, -0.2, -0.2, -1, -1, -1, -1, 1]),
        # patterns hold in one segment; "**" stands for any number of them
        ({"unet": {"*.attn2.add_to_q": 0.4, "conv_*": 0.3}}, [0.3, 1, 0.4, 1, 1, 1, 1, 1, 1]),
        ({"unet": {"attn[12].to_*": 0.4}}, [1, 0.4, 1, 1, 1, 0.4, 0.4, 1, 1]),
        ({"up.**.conv?": 0.4, "*.fc1": -2}, [1, 1, 1, 1, 1, 1, 1, 0.4, -2]),
        ({"unet": {"down.**": 0.4, "up": {"**.to_q": 0.1}}}, [1, 0.4, 0.4, 0.4, 1, 0.1, 1, 1, 1]),
        ({"text_encoder_2": 0.3}, [1] * 9),
        # "^" is the beginning of the path
        ({"unet": {"attentions.0": 0.4, "^down_blocks.1": 0.2}}, [1, 0.4, 0.2, 1, 0.4, 0.4, 1, 1, 1]),
        ({"unet": {"transformer_blocks": 0.4, "^conv_*": 0.3}}, [0.3, 0.4, 0.4, 1, 0.4, 0.4, 0.4, 1, 1]),
        ({"unet": {"^down": {"**.to_q": 0.1}, "^mid": 0.6}}, [1, 0.1, 1, 1, 0.6, 1, 1, 1, 1]),
    ],
)
def test_rules(strength, expected):
    assert values(strength) == pytest.approx(expected)


@pytest.mark.parametrize("numbers", [{"block_0": 0.5}, {"block_1": 0.3, "block_0": 0.5}, [0.5]])
def test_a_blocks_number_is_not_that_of_an_attention_in_another(numbers):
    paths = [f"up_blocks.{i}.attentions.{j}.transformer_blocks.0.ff.net.0.proj" for i in (0, 1) for j in (0, 1)]
    first, second = 0.5, 0.3 if "block_1" in numbers else 1.0
    seen = multipliers({"up": numbers}, Targets([("unet", path) for path in paths]), ("unet",), lambda: {"unet": paths})
    assert seen == [first, first, second, second]


DITS = {
    "flux1": ("transformer_blocks", "single_transformer_blocks"),
    "auraflow": ("joint_transformer_blocks", "single_transformer_blocks"),
    "hidream": ("double_stream_blocks", "single_stream_blocks"),
    "joyimage": ("double_blocks", None),
    "sd3_medium": ("transformer_blocks", None),
}


@pytest.mark.parametrize(("words", "numbered"), [(("double", "single"), "double.1"), (("double_blocks",
                         "single_blocks"), "joint_blocks.1")])  # fmt: skip
@pytest.mark.parametrize("name", DITS)
def test_double_and_single_blocks_of_transformers(name, words, numbered):
    double, single = DITS[name]
    paths = list(trainable(ZOO[name].build()))
    strength = {"transformer": {words[0]: 0.2, numbered: 0.4, "default": 0.9} | ({words[1]: 0.6} if single else {})}
    targets = Targets([("transformer", path) for path in paths])
    seen = multipliers(strength, targets, ("transformer",), lambda: {"transformer": paths})

    def expected(path):
        if path.startswith(f"{double}.1."):
            return 0.4
        if path.startswith(f"{double}."):
            return 0.2
        return 0.6 if single and path.startswith(f"{single}.") else 0.9

    assert seen == [expected(path) for path in paths]
    nested = {"transformer": {words[0]: [0.2, 0.4], "default": 0.9} | ({words[1]: 0.6} if single else {})}
    assert multipliers(nested, targets, ("transformer",), lambda: {"transformer": paths}) == seen


@pytest.mark.parametrize("word", ["double", "single", "double.0"])
def test_a_unet_has_no_streams(word):
    with pytest.raises(StackError, match="names no module"):
        values({"unet": {word: 0.5}})


def test_one_block_of_a_transformer_alone(tmp_path):
    """The strengths of a file by block are those of its parts as files of their own."""
    specimen, path = ZOO["flux1"], tmp_path / "a.safetensors"
    peft_file(specimen, path)
    file = load_file(path)
    model = specimen.build()
    base = specimen.run(model)
    pipe = pipeline(specimen, model)
    pipe.load_adapter(path, adapter_name="a")
    pipe.adapters.set({"a": {"transformer": {"transformer_blocks.0": 0.3, "single": 0.6, "default": 0.0}}})
    seen = specimen.run(model)
    pipe.adapters.clear()
    for block, strength in (("transformer_blocks.0", 0.3), ("single_transformer_blocks", 0.6)):
        part = {key: tensor for key, tensor in file.items() if key.startswith(f"transformer.{block}.")}
        pipe.load_adapter(part, adapter_name=block.replace(".", "_"), weight=strength)
    assert tiny.relative(seen, specimen.run(model), base) < 1e-5


@pytest.mark.parametrize(
    "strength",
    [
        {"unet": {"dwn": 1.0}}, {"unett": 0.5}, {"unet": {"up": {"block_7": 0.1}}}, {"*.attn2.to_kk": 1.0},
        {"unet": {"down.*.to_q": 1.0}}, {"unet": {"attn[34]": 1.0}}, {"text_encoder": {"fc?.bias": 0.1}},
    ],
)  # fmt: skip
def test_a_name_that_is_nowhere_is_an_error(strength):
    with pytest.raises(StackError, match="names no module"):
        values(strength)


@pytest.mark.parametrize("strength", ["0.5", None, True, {"unet": "x"}, float("nan"), {"unet": float("inf")}])
def test_what_is_no_strength_is_an_error(strength):
    with pytest.raises(StackError, match="expected a"):
        values(strength)
