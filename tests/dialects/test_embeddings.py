"""Textual-inversion vectors, packed and alone."""

from __future__ import annotations

import torch

from diffadapt.reading import read_adapter

PAIR = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": torch.ones(2, 2048),
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": torch.ones(8, 2),
}


def test_bundles_beside_a_lora():
    bundle = {
        "bundle_emb.<cat>.clip_l": torch.ones(2, 768), "bundle_emb.<cat>.clip_g": torch.ones(2, 1280),
        "bundle_emb.<cat>.clip_g_out": torch.ones(2, 1280), "bundle_emb.dog.string_to_param.*": torch.ones(1, 768),
    }  # fmt: skip
    adapter = read_adapter({**bundle, **PAIR})
    assert len(adapter.targets) == 1
    assert not adapter.unmatched
    assert set(adapter.embeddings) == {"<cat>", "dog"}
    shapes = {part: tuple(v.shape) for part, v in adapter.embeddings["<cat>"].vectors.items()}
    assert shapes == {"text_encoder": (2, 768), "text_encoder_2": (2, 1280), "text_encoder_2_out": (2, 1280)}


def test_ai_toolkit_trains_one_beside_the_lora():
    adapter = read_adapter({"emb_params": torch.ones(3, 768), **PAIR}, name="style")
    assert set(adapter.embeddings) == {"style"}


def test_files_of_their_own(tmp_path):
    sdxl = read_adapter({"clip_l": torch.ones(4, 768), "clip_g": torch.ones(4, 1280)}, name="cat")
    assert set(sdxl.embeddings["cat"].vectors) == {"text_encoder", "text_encoder_2"}
    assert (sdxl.dialect, dict(sdxl.targets)) == ("embedding", {})
    diffusers = read_adapter({"<cat-toy>": torch.ones(768)})
    assert diffusers.embeddings["<cat-toy>"].vectors["text_encoder"].shape == (1, 768)
    webui = tmp_path / "style.pt"
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 768)}, "name": "style"}, webui)
    adapter = read_adapter(webui)
    assert adapter.embeddings["style"].vectors["text_encoder"].shape == (2, 768)
    assert not adapter.unmatched
