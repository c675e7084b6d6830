"""Names of UNet2DConditionModel and ControlNetModel: Diffusers' own, and the original code's (sgm, ldm).

Sources: the classes of Diffusers 0.42 and its checkpoint converter, against which the tests hold this table.
"""

from __future__ import annotations

from diffadapt.families.names import Grid, Names, Rule, same, under

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "to_qkv", "to_kv", "to_add_out", "norm_q", "norm_k")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "norm_cross")
TRANSFORMER = (
    "norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2",
    *under("attn1", PROJECTIONS + ADDED), *under("attn2", PROJECTIONS + ADDED),
)  # fmt: skip
ATTENTION = ("norm", "proj_in", "proj_out", *under("transformer_blocks.{k}", TRANSFORMER))
# The attention of AttnDownBlock2D and its kin: one Attention, no transformer.
PLAIN_ATTENTION = ("group_norm", "to_q", "to_k", "to_v", "to_out.0", *ADDED)
RESNET = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
TOP = (
    "conv_in", "conv_norm_out", "conv_out", "encoder_hid_proj", "class_embedding.linear_1", "class_embedding.linear_2",
    "time_embedding.linear_1", "time_embedding.linear_2", "time_embedding.cond_proj",
    "add_embedding.linear_1", "add_embedding.linear_2",
)  # fmt: skip

BLOCKS = (
    ("down_blocks.{i}.attentions.{j}", ATTENTION + PLAIN_ATTENTION),
    ("down_blocks.{i}.resnets.{j}", RESNET),
    ("down_blocks.{i}.motion_modules.{j}", ATTENTION),
    ("down_blocks.{i}.downsamplers.{j}", ("conv", *RESNET)),
    ("mid_block.attentions.{j}", ATTENTION + PLAIN_ATTENTION),
    ("mid_block.resnets.{j}", RESNET),
    ("mid_block.motion_modules.{j}", ATTENTION),
    ("up_blocks.{i}.attentions.{j}", ATTENTION + PLAIN_ATTENTION),
    ("up_blocks.{i}.resnets.{j}", RESNET),
    ("up_blocks.{i}.motion_modules.{j}", ATTENTION),
    ("up_blocks.{i}.upsamplers.{j}", ("conv", *RESNET)),
)

NATIVE_RESNET = (
    ("in_layers.0", "norm1"), ("in_layers.2", "conv1"), ("emb_layers.1", "time_emb_proj"), ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"), ("skip_connection", "conv_shortcut"),
)  # fmt: skip
NATIVE_ATTENTION = tuple((leaf, leaf) for leaf in ATTENTION)
NATIVE_TOP = (
    ("input_blocks.0.0", "conv_in"), ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"), ("out.0", "conv_norm_out"), ("out.2", "conv_out"),
    ("label_emb.0.0", "add_embedding.linear_1"), ("label_emb.0.2", "add_embedding.linear_2"),
)  # fmt: skip
# A level of the original UNet is two resnets and a downsampler, or three resnets: every third block begins a level.
NATIVE_BLOCKS = (
    ("input_blocks.{n}.0", "down_blocks.{i}.resnets.{j}", NATIVE_RESNET, Grid(1, 3, 2)),
    ("input_blocks.{n}.1", "down_blocks.{i}.attentions.{j}", NATIVE_ATTENTION, Grid(1, 3, 2)),
    ("input_blocks.{n}.0", "down_blocks.{i}.downsamplers.0", (("op", "conv"),), Grid(3, 3, 1)),
    ("middle_block.0", "mid_block.resnets.0", NATIVE_RESNET, None),
    ("middle_block.1", "mid_block.attentions.0", NATIVE_ATTENTION, None),
    ("middle_block.2", "mid_block.resnets.1", NATIVE_RESNET, None),
    ("output_blocks.{n}.0", "up_blocks.{i}.resnets.{j}", NATIVE_RESNET, Grid(0, 3, 3)),
    ("output_blocks.{n}.1", "up_blocks.{i}.attentions.{j}", NATIVE_ATTENTION, Grid(0, 3, 3)),
)
# The upsampler stands behind the attention, so its place in the block differs where a level has none.
UPSAMPLER = "up_blocks.{i}.upsamplers.0.conv"
FIRST_WITHOUT_ATTENTION = Rule("output_blocks.2.1.conv", ("up_blocks.0.upsamplers.0.conv",))
WITH_ATTENTION = Rule("output_blocks.{n}.2.conv", (UPSAMPLER,), grid=Grid(2, 3, 1))
WITHOUT_ATTENTION = Rule("output_blocks.{n}.1.conv", (UPSAMPLER,), grid=Grid(2, 3, 1), written=False)

CONTROLNET_TOP = (
    "conv_in", "time_embedding.linear_1", "time_embedding.linear_2", "add_embedding.linear_1", "add_embedding.linear_2",
    "controlnet_down_blocks.{i}", "controlnet_mid_block", "controlnet_cond_embedding.conv_in",
    "controlnet_cond_embedding.conv_out", "controlnet_cond_embedding.blocks.{i}",
)  # fmt: skip


def _native(upsamplers: tuple[Rule, ...]) -> list[Rule]:
    rules = [Rule(foreign, (target,)) for foreign, target in NATIVE_TOP]
    for foreign, target, leaves, grid in NATIVE_BLOCKS:
        rules += [Rule(f"{foreign}.{theirs}", (f"{target}.{ours}",), grid=grid) for theirs, ours in leaves]
    return [*rules, *upsamplers]


_DIFFUSERS = same([*TOP, *(name for container, leaves in BLOCKS for name in under(container, leaves))])

UNET_3_LEVELS = Names(_DIFFUSERS, _native((WITH_ATTENTION, WITHOUT_ATTENTION)))
"""SDXL, Kolors: attention in the first level of the way up."""

UNET_4_LEVELS = Names(_DIFFUSERS, _native((FIRST_WITHOUT_ATTENTION, WITH_ATTENTION, WITHOUT_ATTENTION)))
"""SD 1.x, SD 2.x, the SDXL refiner: no attention in the first level of the way up."""

CONTROLNET = Names(
    same(
        [
            *CONTROLNET_TOP,
            *(
                name
                for container, leaves in BLOCKS
                if not container.startswith("up_")
                for name in under(container, leaves)
            ),
        ]
    )
)
