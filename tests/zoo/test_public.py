"""The index of others' students: each is known to its library, each fact has a source, and none has figures."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from limbeck.cli.app import app
from limbeck.errors import ConfigError, CorruptFile, ExtraMissing, UnknownName
from limbeck.zoo import list_public, load_public
from limbeck.zoo.hub_errors import HubError
from limbeck.zoo.public import DATA, PublicStudent, find_public, public_students, read_families

ENTRIES = list(public_students().values())
TIMM = [entry for entry in ENTRIES if entry.library == "timm"]
# No pattern of timm's names that says 'distilled' but these; DINOv2 and DINOv3 do not say so in theirs.
CHECKED = "1.0.31"
ENTRY = dict(name="a", task="text-to-image", library="timm", model="a", method="KD", sources=dict(method="somewhere"))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_entry_is_whole(entry):
    again = PublicStudent.model_validate(entry.model_dump(by_alias=True))
    assert again == entry
    ast.parse(entry.code)
    assert entry.model in entry.code or entry.library == "mobile_sam"
    assert entry.library in entry.code
    assert not {"metrics", "accuracy", "top1"} & set(entry.model_dump())
    assert "TODO" not in json.dumps(entry.model_dump())


def test_families_that_were_asked_for_are_there():
    for name in (
        "deit_tiny_distilled_patch16_224.fb_in1k", "tiny_vit_5m_224.dist_in22k_ft_in1k", "levit_128s.fb_dist_in1k",
        "efficientformer_l1.snap_dist_in1k", "efficientformerv2_s0.snap_dist_in1k", "fastvit_t8.apple_dist_in1k",
        "vit_small_patch14_dinov2.lvd142m", "vit_small_patch16_dinov3.lvd1689m", "MobileCLIP-S1.datacompdr",
        "MobileCLIP2-S0.dfndr2b", "TinyCLIP-ViT-8M-16-Text-3M-YFCC15M", "MobileSAM", "efficientvit-sam-l0",
        "sdxl-turbo", "sd-turbo", "LCM_Dreamshaper_v7", "lcm-lora-sdxl", "bk-sdm-small", "small-sd", "tiny-sd",
        "SSD-1B",
    ):  # fmt: skip
        assert find_public(name).name == name


def test_timm_knows_each_with_this_licence():
    timm = pytest.importorskip("timm")
    from timm.models import get_pretrained_cfg

    known = set(timm.list_pretrained())
    absent = [entry.name for entry in TIMM if entry.model not in known]
    if absent and timm.__version__ != CHECKED:
        pytest.skip(f"timm {timm.__version__} lacks {absent[0]}, which {CHECKED} has")
    assert not absent
    licences = {entry.name: getattr(get_pretrained_cfg(entry.model), "license", None) for entry in TIMM}
    assert licences == {entry.name: entry.licence for entry in TIMM}


def test_all_of_timms_distilled_tags_are_here():
    timm = pytest.importorskip("timm")
    if timm.__version__ != CHECKED:
        pytest.skip(f"the index was made with timm {CHECKED}; this is {timm.__version__}")
    assert not set(timm.list_pretrained("*dist*")) - {entry.model for entry in TIMM}


SMALL = [
    "deit_tiny_distilled_patch16_224.fb_in1k",
    "levit_128s.fb_dist_in1k",
    "efficientformerv2_s0.snap_dist_in1k",
    "fastvit_t8.apple_dist_in1k",
    "tiny_vit_5m_224.dist_in22k_ft_in1k",
    "repvit_m0_9.dist_300e_in1k",
]


@pytest.mark.parametrize("name", SMALL)
def test_small_timm_architecture_builds(name):
    entry = find_public(name)
    model = load_public(name, pretrained=False)
    assert not model.training
    assert model.pretrained_cfg["tag"] == name.split(".", 1)[1]
    from PIL import Image

    image = model.preprocess(Image.new("RGB", (300, 280)))
    assert image.shape == model.pretrained_cfg["input_size"]
    with torch.inference_mode():
        assert model(image[None]).shape == (1, model.num_classes)
    assert entry.teacher


def test_open_clip_knows_each():
    open_clip = pytest.importorskip("open_clip")
    known = set(open_clip.list_pretrained())
    entries = list_public(library="open_clip")
    assert entries
    absent = [entry.name for entry in entries if (entry.model, entry.tag) not in known]
    assert not absent, "older open_clip lacks MobileCLIP2" if all("CLIP2" in n for n in absent) else absent


def test_open_clip_architecture_builds():
    pytest.importorskip("open_clip")
    model = load_public("MobileCLIP-S1.datacompdr", pretrained=False)
    assert not model.training
    with torch.inference_mode():
        assert model.encode_text(model.tokenizer(["a cat"])).ndim == 2


@pytest.mark.parametrize("library", ["transformers", "diffusers"])
def test_classes_exist_there(library):
    package = pytest.importorskip(library)
    for entry in list_public(library=library):
        for name in filter(
            None, (entry.cls, entry.scheduler, "UNet2DConditionModel" if entry.kind == "unet" else None)
        ):
            assert hasattr(getattr(package, name), "from_pretrained" if name != entry.scheduler else "from_config")


class Recorder:
    """A stand-in for a library: every class and function of it notes how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple, dict]] = []

    def __getattr__(self, name: str):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return SimpleNamespace(from_pretrained=call, from_config=call) if name[0].isupper() else call

    config = "config"
    scheduler = SimpleNamespace(config="base's")


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("sdxl-turbo", [("StableDiffusionXLPipeline", "stabilityai/sdxl-turbo")]),
        (
            "lcm-sdxl",
            [
                ("UNet2DConditionModel", "latent-consistency/lcm-sdxl"),
                ("StableDiffusionXLPipeline", "stabilityai/stable-diffusion-xl-base-1.0"),
                ("LCMScheduler", "base's"),
            ],
        ),
        (
            "lcm-lora-sdv1-5",
            [
                ("StableDiffusionPipeline", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
                ("load_lora_weights", "latent-consistency/lcm-lora-sdv1-5"),
                ("LCMScheduler", "base's"),
            ],
        ),
        (
            "TinyCLIP-ViT-8M-16-Text-3M-YFCC15M",
            [("CLIPModel", "wkcn/TinyCLIP-ViT-8M-16-Text-3M-YFCC15M"), ("eval", None)],
        ),
    ],
)
def test_loading_does_what_the_code_says(monkeypatch, name, calls):
    entry = find_public(name)
    library = Recorder()
    monkeypatch.setitem(sys.modules, entry.library, library)
    load_public(name)
    assert [(called, args[0] if args else None) for called, args, _ in library.calls] == calls
    for called, said in calls:
        assert called in entry.code
        assert said in (None, "base's") or said in entry.code


def test_absent_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ExtraMissing, match=r"loading sdxl-turbo needs the 'multimodal' extra"):
        load_public("sdxl-turbo")


def test_library_that_is_not_called_says_how():
    with pytest.raises(ConfigError, match=r"MobileSAM is loaded by its own package .*sam_model_registry"):
        load_public("MobileSAM")
    with pytest.raises(ConfigError, match="no architecture apart from its weights"):
        load_public("sdxl-turbo", pretrained=False)


def test_no_network_is_one_sentence(monkeypatch, tmp_path):
    hub = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match=r"^levit_128s\.fb_dist_in1k cannot be fetched: ") as caught:
        load_public("levit_128s.fb_dist_in1k")
    assert "\n" not in str(caught.value)


def test_unknown_names_have_near_ones():
    with pytest.raises(UnknownName, match="did you mean 'sdxl-turbo'"):
        find_public("sdxl-turbos")
    with pytest.raises(UnknownName):
        find_public("somebody/sdxl-turbo")
    with pytest.raises(UnknownName, match="did you mean 'text-to-image'"):
        list_public(task="text-to-images")
    with pytest.raises(UnknownName, match="did you mean 'open_clip'"):
        list_public(library="openclip")
    assert find_public("stabilityai/sdxl-turbo").name == "sdxl-turbo"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(teacher="big"), "need a source each"),
        (dict(sources=dict(method="a", teacher="b")), "need a source each"),
        (dict(library="diffusers"), "'class' is of transformers and diffusers"),
        (dict(kind="lora"), "has a base"),
        (dict(top1=80.0), "Extra inputs"),
        (dict(paper="2012.1"), "pattern"),
        (dict(library="keras"), "'timm'"),
    ],
)
def test_entry_that_does_not_hold_is_refused(change, said):
    PublicStudent.model_validate(ENTRY)
    with pytest.raises(ValueError, match=said):
        PublicStudent.model_validate(ENTRY | change)


def test_damaged_file_is_named(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("[[family]]\nlibrary = 'timm'\n", encoding="utf-8")
    with pytest.raises(CorruptFile, match=r"x\.toml: not an index"):
        read_families(path)
    path.write_text("[[family]]\nlibrary = 'timm'\nmodels = ['a']\n", encoding="utf-8")
    with pytest.raises(CorruptFile, match=r"x\.toml: task: Field required"):
        read_families(path)
    assert {p.stem for p in DATA.glob("*.toml")} == {"clip", "diffusion", "sam", "timm"}


def run(*args: str) -> str:
    done = CliRunner().invoke(app, ["zoo", "public", *args], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_command_lists_and_filters():
    everything = run()
    assert "not Limbeck's" in everything
    assert all(entry.name in everything for entry in ENTRIES)
    some = json.loads(run("--library", "diffusers", "--task", "text-to-image", "--json"))
    assert [e["name"] for e in some] == [e.name for e in list_public("text-to-image", "diffusers")]
    assert all("code" in e and e["sources"] for e in some)


def test_command_says_how_to_load_one():
    said = run("lcm-lora-sdxl")
    assert said.startswith("not Limbeck's; Limbeck has measured nothing of it")
    assert 'pipe.load_lora_weights("latent-consistency/lcm-lora-sdxl")' in said
    assert "https://arxiv.org/abs/2311.05556" in said
    assert "teacher  not found out" in run("cait_xxs24_224.fb_dist_in1k")
    assert json.loads(run("lcm-lora-sdxl", "--json"))["licence"] == "openrail++"
