"""What an explanation says, and that a header alone says the same as the whole file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import diffadapt
from diffadapt.errors import AlgorithmError, NotAnAdapterError, SourceError, UnsafeFileError
from diffadapt.explain import Wanted, explain_file
from diffadapt.explain.recogniser import Recogniser
from tests import tiny
from tests.explain.conftest import ATTENTION


def kinds(found):
    return [problem.kind for problem in found.problems]


def same(header_only, whole):
    """Equal in all but the words for where it came from."""
    blank = {"source": "", "file_bytes": 0, "header_only": False}
    return replace(header_only, **blank) == replace(whole, **blank)


def test_families_are_told_with_their_reasons(kohya):
    found = explain_file(kohya(metadata={"ss_base_model_version": "sdxl_base_v1-0"}))
    first = found.candidates[0]
    assert (found.family, found.agrees, found.base_model) == ("sdxl", True, "sdxl_base_v1-0")
    assert first.reasons[0] == "knows 1 of 1 module names"
    assert "shapes agree" in first.reasons[1]
    assert "the metadata say sdxl_base_v1-0" in first.reasons
    # Kolors has the same names and widths: keys alone cannot tell.
    assert found.ambiguous
    assert "kolors" in [one.family for one in found.candidates]
    against = {one.family: one.reasons for one in found.ruled_out}
    assert "contradict" in against["sd1"][1]


def test_metadata_that_contradict_the_tensors(kohya):
    metadata = {"ss_base_model_version": "sdxl_base_v1-0", "ss_network_dim": "32", "ss_network_module": "networks.lora"}
    found = explain_file(kohya(width=768, metadata=metadata))
    assert (found.family, found.agrees) == ("sd1", False)
    assert kinds(found) == ["metadata", "metadata"]
    assert "sdxl_base_v1-0" in found.problems[0].message
    assert "rank 32, the tensors have 4" in found.problems[1].message
    assert "contradicts" in str(found)


def test_missing_alphas_and_ranks_beyond_the_layer(kohya):
    assert kinds(explain_file(kohya(alpha=None))) == ["alpha"]
    assert kinds(explain_file(kohya(rank=700))) == ["rank"]
    assert kinds(explain_file(kohya())) == []


def test_unmatched_and_ignored_keys(kohya):
    more = {"mystery": torch.ones(3, 3), "text_model.embeddings.position_ids": torch.ones(1, 4)}
    found = explain_file(kohya(**more))
    assert found.unmatched == ("mystery",)
    assert list(found.ignored) == ["text_model.embeddings.position_ids"]
    assert "unmatched" in kinds(found)
    assert "1 keys: a buffer of positions" in str(found)


def test_tags_and_trigger_words(kohya):
    tags = {"10_ohwx cat": {"cat": 12, "ohwx ": 30}, "3_other": {"cat": 5, "dog": "many", "": 4}}
    metadata = {"ss_tag_frequency": json.dumps(tags), "modelspec.trigger_phrase": "ohwx"}
    found = explain_file(kohya(metadata=metadata))
    assert found.tags == (("ohwx", 30), ("cat", 17))
    assert found.trigger_words == ("ohwx", "ohwx cat", "other")
    for broken in ('{"a": {"b": 1}', "[1]", "None", "[" * 100_000):
        assert explain_file(kohya(metadata={"ss_tag_frequency": broken})).tags == ()


def test_the_table_groups_blocks(tmp_path):
    tensors = {}
    for block in range(6):
        key = f"lora_te_text_model_encoder_layers_{block}_mlp_fc1"
        tensors |= {f"{key}.lora_down.weight": torch.ones(2 + block, 768), f"{key}.alpha": torch.tensor(1.0)}
        tensors[f"{key}.lora_up.weight"] = torch.ones(3072, 2 + block)
    for block in (1, 2):
        key = f"lora_unet_down_blocks_{block}_attentions_0_proj_in"
        tensors |= {f"{key}.lora_down.weight": torch.ones(4, 640), f"{key}.lora_up.weight": torch.ones(640, 4)}
    tensors["lora_unet_conv_in.diff"] = torch.ones(320, 4, 3, 3)
    save_file(tensors, tmp_path / "a.safetensors")
    table = explain_file(tmp_path / "a.safetensors").table
    rows = {(row.component, row.blocks, row.algorithm): row for row in table}
    text = rows["text_encoder", "text_model.encoder.layers 0-5", "lora"]
    assert (text.modules, text.rank, text.alpha) == (6, (2, 7), (1.0, 1.0))
    assert text.scale == pytest.approx((1 / 7, 1 / 2))
    assert text.parameters == sum((768 + 3072) * (2 + block) for block in range(6))
    assert {("unet", "down_blocks.1", "lora"), ("unet", "down_blocks.2", "lora")} <= rows.keys()
    assert rows["unet", "(top level)", "full"].parameters == 320 * 4 * 9


@pytest.mark.parametrize("variant", tiny.LYCORIS)
def test_a_header_says_what_the_whole_file_says(variant, tmp_path):
    path = tmp_path / f"{variant}.safetensors"
    tiny.write_lycoris(tiny.unet(), variant, path)
    assert same(explain_file(path), diffadapt.read_adapter(path).explain())


def test_the_data_are_not_touched(kohya, monkeypatch):
    path = kohya()
    monkeypatch.setattr("diffadapt.io.safetensors.map_file", None)
    found = explain_file(path)
    assert found.header_only
    assert found.table[0].alpha == (2.0, 2.0)
    assert found.table[0].parameters == 4 * (2048 + 640)


def test_structures_are_remembered_by_all_that_decides(kohya):
    recogniser = Recogniser()

    def explained(name, **options):
        return explain_file(kohya(name, **options), None, recogniser)

    first = explained("a.safetensors", metadata={"ss_output_name": "one", "ss_tag_frequency": '{"1_x": {"t": 1}}'})
    again = explained("bee.safetensors", metadata={"ss_output_name": "two", "ss_tag_frequency": '{"1_y": {"u": 1}}'})
    assert again.table is first.table  # remembered, though the metadata differ in what tells nothing
    assert (again.source, again.trigger_words, again.tags) == ("bee.safetensors", ("y",), (("u", 1),))
    assert explained("c.safetensors", alpha=3.0).table[0].alpha == (3.0, 3.0)
    told = explained("d.safetensors", metadata={"ss_base_model_version": "kolors"})
    assert told.base_model == "kolors"
    assert told.candidates != first.candidates
    plain = explained("e.safetensors")
    assert (plain.base_model, plain.trigger_words) == (None, ())


def test_a_remembered_structure_does_not_excuse_a_damaged_file(kohya):
    recogniser = Recogniser()
    data = kohya().read_bytes()
    explain_file(kohya(), None, recogniser)
    path = kohya("b.safetensors")
    path.write_bytes(data[:-4])
    with pytest.raises(SourceError, match=r"b\.safetensors: truncated"):
        explain_file(path, None, recogniser)
    path.write_bytes(data + b"more")
    with pytest.raises(UnsafeFileError, match="4 bytes follow"):
        explain_file(path, None, recogniser)


def test_errors_are_those_of_reading(kohya, tmp_path):
    half = kohya("half.safetensors")
    save_file({f"{ATTENTION}.lora_down.weight": torch.ones(4, 768)}, half)
    with pytest.raises(AlgorithmError, match=r"half\.safetensors.*lora_up"):
        explain_file(half)
    save_file({f"image_proj.{n}.weight": torch.ones(2) for n in range(3)}, half)
    with pytest.raises(NotAnAdapterError, match="IP-Adapter"):
        explain_file(half)


def test_a_config_beside_the_file_gives_the_alpha(tmp_path):
    key = "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"{key}.lora_A.weight": torch.ones(4, 2048), f"{key}.lora_B.weight": torch.ones(640, 4)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    found = explain_file(tmp_path / "adapter_model.safetensors")
    assert found.table[0].alpha == (8.0, 8.0)
    assert found.trainer == "peft"
    assert kinds(found) == []


def test_what_only_values_tell_is_said(tmp_path):
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{key}.lora_down.weight": torch.ones(6, 3072), f"{key}.lora_up.weight": torch.ones(9216, 6)}
    metadata = {"ss_network_args": '{"split_qkv": "True"}', "ss_base_model_version": "flux1"}
    save_file({**tensors, f"{key}.alpha": torch.tensor(6.0)}, tmp_path / "a.safetensors", metadata)
    found = explain_file(tmp_path / "a.safetensors")
    assert found.table[0].scale == (1.0, 1.0)
    assert "split_qkv" in found.problems[0].message
    assert "it has more blocks than the file" in found.candidates[0].reasons


def test_a_file_of_embeddings(tmp_path):
    save_file({"clip_l": torch.ones(4, 768), "clip_g": torch.ones(4, 1280)}, tmp_path / "word.safetensors")
    found = explain_file(tmp_path / "word.safetensors")
    assert (found.dialect, found.embeddings, found.table) == ("embedding", ("word",), ())
    assert "component" not in str(found)


def test_a_pickle_is_read_whole(tmp_path):
    torch.save({f"{ATTENTION}.lora_down.weight": torch.ones(4, 768)}, tmp_path / "a.pt")
    with pytest.raises(AlgorithmError, match="lora_up"):
        explain_file(tmp_path / "a.pt")
    pair = {f"{ATTENTION}.lora_down.weight": torch.ones(4, 768), f"{ATTENTION}.lora_up.weight": torch.ones(640, 4)}
    torch.save(pair, tmp_path / "a.pt")
    found = explain_file(tmp_path / "a.pt")
    assert (found.family, found.header_only) == ("sd1", False)


def test_nan_is_a_problem_on_request(kohya):
    bad = torch.ones(640, 4)
    bad[3, 3] = float("nan")
    path = kohya(lora_unet_conv_in=bad)
    save_file({f"{ATTENTION}.lora_down.weight": torch.ones(4, 768), f"{ATTENTION}.lora_up.weight": bad}, path)
    assert "nonfinite" not in kinds(explain_file(path))
    assert "nonfinite" in kinds(explain_file(path, Wanted(check=True)))


def test_a_stale_hash_is_a_problem(kohya):
    found = explain_file(kohya(metadata={"sshs_model_hash": "0" * 64}), Wanted(hashes=True))
    assert kinds(found) == ["hash"]
    assert found.header_only
    right = explain_file(kohya(metadata={"sshs_model_hash": found.hashes["tensors"]}), Wanted(hashes=True))
    assert right.problems == ()


def test_a_state_dict_explains_itself():
    pair = {f"{ATTENTION}.lora_down.weight": torch.ones(4, 768), f"{ATTENTION}.lora_up.weight": torch.ones(640, 4)}
    found = diffadapt.read_adapter(pair).explain(norms=True, hashes=True)
    assert (found.family, found.hashes, found.file_bytes) == ("sd1", None, None)
    assert found.norm == pytest.approx(4 * (640 * 768) ** 0.5)
    json.dumps(found.to_dict())


def test_sampled_alphas_stand_for_those_of_their_kind(tmp_path):
    """Among thousands of files one alpha is read for each kind of module and rank; the explanation says so."""
    tensors = {}
    for block, rank in ((0, 4), (1, 4), (2, 8)):
        key = f"lora_unet_down_blocks_{block}_attentions_0_proj_in"
        tensors |= {
            f"{key}.lora_down.weight": torch.ones(rank, 320, 1, 1),
            f"{key}.lora_up.weight": torch.ones(320, rank, 1, 1),
            f"{key}.alpha": torch.tensor(float(rank)),
        }
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    every, sampled = explain_file(path), explain_file(path, recogniser=Recogniser(sampled=True))
    assert not every.alphas_sampled
    assert sampled.alphas_sampled
    assert replace(sampled, alphas_sampled=False) == every
    assert "an alpha of each kind" in str(sampled)
