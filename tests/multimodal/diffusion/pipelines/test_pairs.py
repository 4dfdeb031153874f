"""Known pairs of text-to-image models: facts, own ones, loading each kind from folders, what is missing, the CLI."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="needs the 'multimodal' extra")
pytest.importorskip("transformers", reason="needs the 'multimodal' extra")

import huggingface_hub.constants as hub
from PIL import Image
from safetensors.torch import save_file

from limbeck.cli import main
from limbeck.errors import ConfigError, CorruptFile, DataMissing, UnknownName
from limbeck.multimodal.diffusion.pipelines import loading as pair_loading
from limbeck.multimodal.diffusion.pipelines.loading import load_pair
from limbeck.multimodal.diffusion.pipelines.pairs import PAIRS, Pair, find_pair
from tests.multimodal.diffusion.pipelines.toys import SIDE, pipeline, unet


@pytest.fixture(autouse=True)
def offline(monkeypatch) -> None:
    """Nothing may be fetched."""
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A base pipeline, and its student as a saved U-Net and as one file."""
    folder = tmp_path_factory.mktemp("saved")
    pipeline(folder, xl=True).save_pretrained(folder / "base")
    student = unet(True, seed=1)
    student.save_pretrained(folder / "student" / "unet")
    save_file(student.state_dict(), folder / "student" / "student.safetensors")
    return folder


def own(saved: Path, **changes: Any) -> Pair:
    """A pair in folders."""
    facts: dict[str, Any] = dict(
        name="toy",
        base=str(saved / "base"),
        distilled=str(saved / "student"),
        kind="unet",
        weights="unet",
        scheduler="EulerAncestralDiscreteScheduler",
        scheduler_options=dict(timestep_spacing="trailing"),
        image_size=SIDE,
    )
    return Pair(**{**facts, **changes})


# --- facts ---


def test_the_pairs_facts_are_whole() -> None:
    assert {"sdxl-turbo", "sdxl-lightning", "sdxl-lcm", "sdxl-lcm-lora", "sdxl-dmd2"} <= set(PAIRS)
    for name, pair in PAIRS.items():
        assert name == pair.name
        assert pair.source
        assert pair.licence
        assert re.fullmatch(r"\d{4}\.\d{5}", str(pair.paper))
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", pair.base)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", pair.distilled)
        assert len(pair.times or ()) == pair.steps
        assert Pair.model_validate_json(pair.model_dump_json()) == pair
    assert PAIRS["sdxl-dmd2"].times == (999, 749, 499, 249)


def test_the_list_of_pairs_loads_nothing_heavy() -> None:
    heavy = "[n for n in ('torch', 'diffusers') if n in sys.modules]"
    code = f"import limbeck.multimodal.diffusion.pipelines.pairs, sys; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pairs_are_found_by_name_or_in_a_file_of_your_own(saved, tmp_path) -> None:
    assert find_pair("sdxl-dmd2") is PAIRS["sdxl-dmd2"]
    with pytest.raises(UnknownName, match=r"unknown pair 'sdxl-dmd' .*did you mean 'sdxl-dmd2'"):
        find_pair("sdxl-dmd")
    file = tmp_path / "mine.json"
    file.write_text(own(saved).model_dump_json())
    assert find_pair(str(file)) == own(saved)
    file.write_text('{"name": "x"}')
    with pytest.raises(ConfigError, match=r"mine\.json: not a pair of models: base Field required"):
        find_pair(str(file))
    file.write_text("{")
    with pytest.raises(ConfigError, match="not a pair of models"):
        find_pair(str(file))
    with pytest.raises(DataMissing, match=r"gone\.json: this pair cannot be read"):
        find_pair("gone.json")
    with pytest.raises(ValueError, match=r"a \.safetensors file; got 'student\.bin'"):
        own(saved, kind="unet_file", weights="student.bin")


# --- loading ---


@pytest.mark.parametrize(("kind", "weights"), [("unet", "unet"), ("unet_file", "student.safetensors")])
def test_a_students_weights_are_loaded_beside_the_bases(kind, weights, saved) -> None:
    loaded = load_pair(own(saved, kind=kind, weights=weights))
    base, distilled = loaded.base, loaded.distilled
    for pipe, expected in ((base, unet(True, 0)), (distilled, unet(True, 1))):
        state = pipe.unet.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in expected.state_dict().items())
    assert base.vae is distilled.vae
    assert base.text_encoder_2 is distilled.text_encoder_2
    assert type(base.scheduler).__name__ == "DDIMScheduler"
    assert (base.scheduler.config.timestep_spacing, base.scheduler.config.clip_sample) == ("trailing", False)
    assert type(distilled.scheduler).__name__ == "EulerAncestralDiscreteScheduler"
    assert base.scheduler.config.beta_end == distilled.scheduler.config.beta_end == 0.012
    found = loaded.hand_over("a cat", [0, 1])
    assert (found.calls, found.images[1].size, found.latents.dtype) == (5, (SIDE, SIDE), torch.float32)


def test_the_base_may_sample_with_the_students_scheduler_and_weights_may_be_half(saved) -> None:
    loaded = load_pair(own(saved), same_scheduler=True, dtype="bfloat16")
    assert type(loaded.base.scheduler) is type(loaded.distilled.scheduler)
    assert loaded.base.scheduler is not loaded.distilled.scheduler
    found = loaded.hand_over("a cat", 0, guidance=1.0, record=True)
    assert {p.dtype for pipe in (loaded.base, loaded.distilled) for p in pipe.unet.parameters()} == {torch.bfloat16}
    assert found.calls == 4
    assert found.latents.dtype == torch.bfloat16
    assert bool(torch.isfinite(found.latents).all())


@pytest.mark.skipif(find_spec("peft") is None, reason="diffusers reads LoRA files by peft")
def test_a_lora_is_added_to_the_students_network_alone(saved, tmp_path) -> None:
    network = unet(True, 0)
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = network.get_submodule(name).weight
    down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    save_file({f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    pair = own(saved, kind="lora", distilled=str(tmp_path), weights="lora.safetensors", scheduler="LCMScheduler")
    loaded = load_pair(pair)
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.base.unet.state_dict()[key], value)
        change = up @ down if key == f"{name}.weight" else torch.zeros_like(value)
        assert torch.allclose(loaded.distilled.unet.state_dict()[key], value + change, atol=1e-5)
    assert loaded.hand_over("a cat", 0).calls == 5


def test_a_lora_without_peft_is_one_sentence(saved, monkeypatch) -> None:
    monkeypatch.setattr(pair_loading, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"student of sdxl-lcm-lora is a LoRA.*pip install peft"):
        load_pair("sdxl-lcm-lora")


def test_what_is_missing_says_how_much_is_downloaded_and_where_to(tmp_path) -> None:
    with pytest.raises(DataMissing) as missing:
        load_pair("sdxl-turbo", cache_dir=tmp_path, local_files_only=True)
    said = str(missing.value)
    assert said.startswith("stabilityai/stable-diffusion-xl-base-1.0 of pair sdxl-turbo is not on this machine")
    assert f"the download of 12.1 GB goes to {tmp_path};" in said
    assert "\n" not in said
    assert not list(tmp_path.rglob("*.safetensors"))


def test_files_that_are_missing_or_wrong(saved, tmp_path) -> None:
    with pytest.raises(DataMissing, match=r"student: files of pair toy cannot be read"):
        load_pair(own(saved, weights="gone"))
    with pytest.raises(DataMissing, match=r"gone\.safetensors: the student's weights of toy are not there"):
        load_pair(own(saved, kind="unet_file", weights="gone.safetensors"))
    with pytest.raises(DataMissing, match="gone of pair toy is not on this machine"):
        load_pair(own(saved, base=str(tmp_path / "gone")))
    for content in ({"conv_in.weight": torch.zeros(2)}, None):
        if content is None:
            (tmp_path / "x.safetensors").write_bytes(b"not one")
        else:
            save_file(content, tmp_path / "x.safetensors")
        with pytest.raises(CorruptFile, match=r"x\.safetensors: not the weights of toy's U-Net"):
            load_pair(own(saved, kind="unet_file", distilled=str(tmp_path), weights="x.safetensors"))
    with pytest.raises(UnknownName, match="did you mean 'LCMScheduler'"):
        load_pair(own(saved, scheduler="LCMSheduler"))
    for dtype in ("float17", "int8"):
        with pytest.raises(ConfigError, match="dtype of a pair is 'float32'"):
            load_pair(own(saved), dtype=dtype)


# --- the command line ---


def run(capsys: pytest.CaptureFixture[str], *args: object, status: int = 0) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["diffusion", *(str(a) for a in args)])
    said = capsys.readouterr()
    assert int(stop.value.code or 0) == status, said.err
    return said.err if status else said.out


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_pairs_are_listed(capsys) -> None:
    said = run(capsys, "pairs")
    rows = {line.split()[0]: line.split() for line in said.splitlines()[1:]}
    assert set(rows) == set(PAIRS)
    expected = ["sdxl-dmd2", "tianweiy/DMD2", "unet_file", "LCM", "4", "1024", "12.1", "cc-by-nc-4.0"]
    assert rows["sdxl-dmd2"] == expected
    assert rows["sd15-lcm-lora"][6] == "?"
    found = json.loads(run(capsys, "pairs", "--json"))
    assert [Pair.model_validate(pair) for pair in found] == list(PAIRS.values())


def test_a_hand_over_writes_images_grid_strip_and_facts(capsys, saved, tmp_path) -> None:
    file, out = tmp_path / "mine.json", tmp_path / "out"
    file.write_text(own(saved).model_dump_json())
    said = run(
        capsys, "hand-over", file, "--prompt", "a cat", "--prompt", "a dog", "--seed", 3, "--seed", 4, "--out", out
    )
    assert "4 images in" in said
    assert "5 network calls each: 2 of the base, 3 of the student" in said
    facts = json.loads((out / "hand_over.json").read_text())
    assert [(i["prompt"], i["seed"]) for i in facts["images"]] == [(p, s) for p in ("a cat", "a dog") for s in (3, 4)]
    assert [s["model"] for s in facts["steps"]] == ["base", "distilled", "distilled", "distilled"]
    assert all(size_of(out / i["file"]) == (SIDE, SIDE) for i in facts["images"])
    assert size_of(out / "strip.png")[1] > size_of(out / "grid.png")[1] > 2 * SIDE
    printed = json.loads(
        run(
            capsys, "hand-over", file, "--prompt", "a cat", "--at", 0, "--out", out, "--size", 24, "--offline", "--json"
        )
    )
    assert (printed["base_calls"], printed["distilled_calls"]) == (0, 4)
    assert printed["images"] == [dict(file="000_seed0.png", prompt="a cat", seed=0)]
    assert size_of(out / "000_seed0.png") == (24, 24)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("sdxl-lightnin", "--prompt", "a"), "did you mean 'sdxl-lightning'"),
        (("gone.json", "--prompt", "a"), "gone.json"),
        (("sdxl-dmd2", "--prompt", "a", "--offline"), "12.1 GB"),
    ],
    ids=str,
)
def test_mistakes_cost_one_line(capsys, args, said, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.DiffusionPipeline.download", _absent)
    found = run(capsys, "hand-over", *args, "--out", tmp_path / "out", status=2).strip()
    assert said in found
    assert found.startswith("error: ")
    assert "Traceback" not in found


def _absent(*args: Any, **options: Any) -> Any:
    raise OSError("not in the cache")


def test_a_hand_over_out_of_range_costs_one_line(capsys, saved, tmp_path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(own(saved).model_dump_json())
    said = run(capsys, "hand-over", file, "--prompt", "a", "--at", 9, "--out", tmp_path / "out", status=2)
    assert "step 0 … 4" in said
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(("command", "example"), [("pairs", "pairs"), ("hand-over", "hand-over sdxl-dmd2 --prompt")])
def test_help_shows_an_example(capsys, command, example) -> None:
    assert f"Example: limbeck diffusion {example}" in " ".join(run(capsys, command, "--help").split())
