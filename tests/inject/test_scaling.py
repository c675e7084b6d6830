"""Strengths by component, block and module: whole path segments, and a misspelling is an error."""

from __future__ import annotations

import pytest

from diffadapt import StackError
from diffadapt.inject.scaling import Targets, multipliers

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
    ],
)
def test_rules(strength, expected):
    assert values(strength) == pytest.approx(expected)


@pytest.mark.parametrize("strength", [{"unet": {"dwn": 1.0}}, {"unett": 0.5}, {"unet": {"up": {"block_7": 0.1}}}])
def test_a_name_that_is_nowhere_is_an_error(strength):
    with pytest.raises(StackError, match="names no module"):
        values(strength)


@pytest.mark.parametrize("strength", ["0.5", None, True, {"unet": "x"}, float("nan"), {"unet": float("inf")}])
def test_what_is_no_strength_is_an_error(strength):
    with pytest.raises(StackError, match="expected a"):
        values(strength)
