"""`pipeline_for`: the pipeline that an adapter's own files name, from folders and a cached repository."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import peft
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import diffadapt
from diffadapt import base_pipeline
from diffadapt.errors import SourceError
from diffadapt.families import FAMILIES
from diffadapt.families.repositories import REPOSITORIES
from tests import tiny

NOTHING = {"vae": None, "tokenizer": None}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion, saved."""
    folder = tmp_path_factory.mktemp("base") / "tiny-sd"
    tiny.sd().save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A PEFT folder of a LoRA for it, whose config names no base. It fits SDXL too, by its names."""
    model = peft.get_peft_model(tiny.unet(), peft.LoraConfig(r=2, target_modules=["attn2.to_k", "attn1.to_q"]))
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0, 0.1)
    model.save_pretrained(str(tmp_path / "adapter"))
    # PEFT writes a card that names no base too.
    (tmp_path / "adapter/README.md").unlink()
    return tmp_path / "adapter"


def pipeline_for(source: object, **options: object) -> DiffusionPipeline:
    """As a user calls it; the tiny pipeline has no decoder and no tokenizer, which Diffusers wants to be told."""
    return diffadapt.pipeline_for(source, **NOTHING, **options)


def named_in_config(folder: Path, base: str, **fields: str) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base, **fields}))
    return folder


def with_header(folder: Path, **header: str) -> Path:
    """The same LoRA in one file, whose header says this."""
    tensors = load_file(folder / "adapter_model.safetensors")
    path = folder.parent / "lora.safetensors"
    save_file({key.replace("base_model.model.", "unet."): tensor for key, tensor in tensors.items()}, path, header)
    return path


def changed(pipe: DiffusionPipeline) -> bool:
    """Whether the adapter acts on the pipeline that was built."""
    seen = tiny.run(pipe.unet)
    with pipe.adapters.disable():
        return not torch.equal(seen, tiny.run(pipe.unet))


def test_a_peft_config_names_the_pipelines_folder(pipeline: Path, adapter: Path) -> None:
    pipe = pipeline_for(named_in_config(adapter, str(pipeline)), adapter_name="mine", weight=0.5)
    assert isinstance(pipe, StableDiffusionPipeline)
    assert pipe.adapters.names == ("mine",)
    assert pipe.adapters.report("mine").complete
    assert pipe.adapters.active["mine"] == 0.5
    assert changed(pipe)


def test_or_that_of_its_denoiser(pipeline: Path, adapter: Path) -> None:
    """What Diffusers calls a model that was loaded from a pipeline's folder, and PEFT notes."""
    assert changed(pipeline_for(named_in_config(adapter, str(pipeline / "unet"))))


@pytest.mark.parametrize("key", ["base_model", "ss_sd_model_name"])
def test_a_header_names_it(pipeline: Path, adapter: Path, key: str) -> None:
    assert changed(pipeline_for(with_header(adapter, **{key: str(pipeline)})))


@pytest.mark.parametrize("form", ["base_model: {}", "base_model:\n- {}\n- owner/other"])
def test_a_model_card_names_it(pipeline: Path, adapter: Path, form: str) -> None:
    (adapter / "README.md").write_text(f"---\nlicense: mit\n{form.format(pipeline)}\n---\n# A LoRA\n")
    assert changed(pipeline_for(adapter))


@pytest.mark.parametrize("text", ["", "---\nbase_model: [\n---\n", "---\n- 1\n---\n", "---\nbase_model: 3\n---\n"])
def test_a_card_that_names_none_is_passed_over(pipeline: Path, adapter: Path, text: str, monkeypatch) -> None:
    (adapter / "README.md").write_text(text)
    monkeypatch.setattr(base_pipeline, "REPOSITORIES", {"sdxl": str(pipeline)})
    with pytest.warns(diffadapt.GuessedBaseWarning, match="no file names the base"):
        assert changed(pipeline_for(adapter))


def test_what_is_given_goes_before_what_is_said(pipeline: Path, adapter: Path) -> None:
    pipe = pipeline_for(
        named_in_config(adapter, "nobody/nothing"),
        base=pipeline,
        torch_dtype=torch.bfloat16,
        trainable=True,
        adapter_name="mine",
    )
    assert pipe.unet.dtype == torch.bfloat16
    assert all(parameter.requires_grad for parameter in pipe.adapters.parameters("mine"))


def test_a_name_that_means_nothing_here_gives_the_familys_usual_base(
    pipeline: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_pipeline, "REPOSITORIES", {"sd1": str(pipeline)})
    file = with_header(adapter, ss_sd_model_name="model.safetensors", ss_base_model_version="sd_v1")
    with pytest.warns(diffadapt.GuessedBaseWarning, match="ss_sd_model_name of the header names 'model.safetensors'"):
        assert changed(pipeline_for(file))


def test_without_any_name_the_error_says_what_to_do(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_pipeline, "REPOSITORIES", {})
    with pytest.raises(SourceError, match=r"adapter_model.safetensors \(family sdxl\): no file names.*Pass base="):
        pipeline_for(adapter)
    with pytest.raises(SourceError, match=r"base= names .*no folder here.*from_single_file"):
        pipeline_for(adapter, base=adapter / "checkpoint.safetensors")


def cached(cache: Path, repository: str, folder: Path) -> None:
    """A folder in the layout of the Hub's cache."""
    storage = cache / f"models--{repository.replace('/', '--')}"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs/main").write_text(COMMIT)
    shutil.copytree(folder, storage / "snapshots" / COMMIT)


def test_repositories_in_the_cache(pipeline: Path, adapter: Path, tmp_path: Path) -> None:
    """Adapter, card and base from the Hub's cache, offline."""
    (adapter / "README.md").write_text("---\nbase_model: owner/base\n---\n")
    cached(tmp_path / "hub", "owner/adapter", adapter)
    cached(tmp_path / "hub", "owner/base", pipeline)
    pipe = pipeline_for("owner/adapter", cache_dir=tmp_path / "hub", local_files_only=True)
    assert changed(pipe)


def test_a_base_that_is_not_in_the_cache_is_not_replaced_by_another(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"owner/base \(named by adapter_config.json\) could not be built"):
        pipeline_for(named_in_config(adapter, "owner/base"), cache_dir=tmp_path / "hub", local_files_only=True)


def refusing(error: type[Exception]) -> classmethod:
    """`from_pretrained` of a Hub that answers so: Diffusers raises its own error from the client's."""

    def from_pretrained(cls: type, place: str, **options: object) -> object:
        answer = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co/owner/base"))
        if place == "owner/base":
            raise OSError("Cannot load model owner/base") from error("no", response=answer)
        return tiny.sd()

    return classmethod(from_pretrained)


def test_a_repository_that_is_gone(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", refusing(RepositoryNotFoundError))
    with pytest.warns(diffadapt.GuessedBaseWarning, match="'owner/base', which does not exist.*Took stabilityai"):
        assert changed(pipeline_for(named_in_config(adapter, "owner/base")))


def test_a_gated_repository_is_asked_for(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", refusing(GatedRepoError))
    with pytest.raises(SourceError, match=r"owner/base .* is gated: accept its conditions"):
        pipeline_for(named_in_config(adapter, "owner/base"))


def test_the_configs_revision_is_the_bases(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def from_pretrained(cls: type, place: str, **options: object) -> object:
        asked.update(options, place=place)
        return tiny.sd()

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", classmethod(from_pretrained))
    named_in_config(adapter, "owner/base", revision="v2")
    pipeline_for(adapter, variant="fp16")
    assert asked == {"place": "owner/base", "revision": "v2", "variant": "fp16", **NOTHING}
    pipeline_for(adapter, revision="main")
    assert asked["revision"] == "main"


def test_the_table_names_families_and_repositories() -> None:
    assert REPOSITORIES.keys() <= {family.name for family in FAMILIES}
    assert all(base_pipeline.is_hub_id(name) for name in REPOSITORIES.values())


def test_an_adapter_that_was_read_already(pipeline: Path, adapter: Path) -> None:
    read = diffadapt.read_adapter(named_in_config(adapter, str(pipeline)))
    assert changed(pipeline_for(read))


def test_keys_of_a_state_dict_have_no_base(monkeypatch: pytest.MonkeyPatch) -> None:
    model = peft.get_peft_model(tiny.unet(), peft.LoraConfig(r=2, target_modules=["attn2.to_k"]))
    monkeypatch.setattr(base_pipeline, "REPOSITORIES", {})
    with pytest.raises(SourceError, match="no file names the base"):
        pipeline_for(get_peft_model_state_dict(model))
