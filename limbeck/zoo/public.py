"""Publicly known distilled students that are not ours: what they are, and how their own library loads them.

No figures: this index says only what was looked up, with the place where each fact stands. What was not found out is
None, not guessed.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from limbeck.errors import ConfigError, CorruptFile, UnknownName, first_problem

DATA = Path(__file__).parent / "public_data"
Library = Literal["timm", "open_clip", "transformers", "diffusers", "mobile_sam", "efficientvit"]
PublicTask = Literal[
    "image-classification",
    "image-feature-extraction",
    "zero-shot-image-classification",
    "mask-generation",
    "text-to-image",
]
Kind = Literal["whole", "unet", "lora"]
Fact = Literal["teacher", "method", "licence", "paper"]
Text = Annotated[str, Field(min_length=1)]


class PublicStudent(BaseModel):
    """A distilled model of somebody else."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Text = Field(description="as its library names it, without an owner")
    task: PublicTask = Field(description="in the Hugging Face hub's words")
    library: Library
    model: Text = Field(description="what its library is asked for")
    cls: str | None = Field(None, alias="class", description="of transformers or diffusers, that loads it")
    kind: Kind = Field("whole", description="of diffusers: a pipeline, a U-Net for that of `base`, or a LoRA for it")
    base: str | None = None
    scheduler: str | None = Field(None, description="class of diffusers that the student needs instead of the base's")
    install: str | None = Field(None, description="for packages that limbeck does not call")
    teacher: str | None = Field(None, description="None: not found out")
    method: Text
    licence: str | None = Field(None, description="of the weights; None: not found out")
    paper: str | None = Field(None, pattern=r"^\d{4}\.\d{4,5}$", description="arXiv id")
    sources: dict[Fact, Text] = Field(description="where each fact that is stated was read")

    @model_validator(mode="after")
    def _is_sourced(self) -> Self:
        stated = {fact for fact in get_args(Fact) if getattr(self, fact) is not None}
        if stated != set(self.sources):
            raise ValueError(
                f"{self.name}: facts {sorted(stated)} need a source each; there are {sorted(self.sources)}"
            )
        return self

    @model_validator(mode="after")
    def _loads(self) -> Self:
        if (self.cls is not None) != (self.library in ("transformers", "diffusers")):
            raise ValueError(f"{self.name}: 'class' is of transformers and diffusers, and of those alone")
        if (self.base is not None) != (self.kind != "whole"):
            raise ValueError(f"{self.name}: a {self.kind!r} has {'no' if self.base else 'a'} base")
        return self

    @property
    def tag(self) -> str:
        """The pretrained tag of open_clip: what follows the last dot of the name."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def code(self) -> str:
        """Python lines that load it there; `load_public` does the same."""
        return _CODE[self.library](self)


def _timm(entry: PublicStudent) -> str:
    return f'import timm\n\nmodel = timm.create_model("{entry.model}", pretrained=True).eval()'


def _open_clip(entry: PublicStudent) -> str:
    return (
        "import open_clip\n\n"
        f'model, _, preprocess = open_clip.create_model_and_transforms("{entry.model}", pretrained="{entry.tag}")\n'
        f'tokenizer = open_clip.get_tokenizer("{entry.model}")'
    )


def _transformers(entry: PublicStudent) -> str:
    return (
        f"from transformers import AutoProcessor, {entry.cls}\n\n"
        f'model = {entry.cls}.from_pretrained("{entry.model}").eval()\n'
        f'processor = AutoProcessor.from_pretrained("{entry.model}")'
    )


def _diffusers(entry: PublicStudent) -> str:
    unet = "UNet2DConditionModel" if entry.kind == "unet" else None
    names = [name for name in (entry.cls, entry.scheduler, unet) if name is not None]
    lines = [f"from diffusers import {', '.join(sorted(names))}", ""]
    if unet is not None:
        lines.append(f'unet = {unet}.from_pretrained("{entry.model}")')
        lines.append(f'pipe = {entry.cls}.from_pretrained("{entry.base}", unet=unet)')
    else:
        lines.append(f'pipe = {entry.cls}.from_pretrained("{entry.base or entry.model}")')
    if entry.kind == "lora":
        lines.append(f'pipe.load_lora_weights("{entry.model}")')
    if entry.scheduler:
        lines.append(f"pipe.scheduler = {entry.scheduler}.from_config(pipe.scheduler.config)")
    return "\n".join(lines)


def _mobile_sam(entry: PublicStudent) -> str:
    return (
        'from mobile_sam import sam_model_registry\n\nmodel = sam_model_registry["vit_t"](checkpoint="mobile_sam.pt")'
    )


def _efficientvit(entry: PublicStudent) -> str:
    return (
        "from efficientvit.sam_model_zoo import create_efficientvit_sam_model\n\n"
        f'model = create_efficientvit_sam_model(name="{entry.model}", pretrained=True).eval()'
    )


_CODE = dict(
    timm=_timm,
    open_clip=_open_clip,
    transformers=_transformers,
    diffusers=_diffusers,
    mobile_sam=_mobile_sam,
    efficientvit=_efficientvit,
)


@cache
def public_students() -> dict[str, PublicStudent]:
    """Every known student by name, sorted.

    Raises: CorruptFile for an entry that does not hold, naming file and entry.
    """
    found: dict[str, PublicStudent] = {}
    for path in sorted(DATA.glob("*.toml")):
        for entry in read_families(path):
            if entry.name in found:
                raise CorruptFile(f"{path}: {entry.name} is there twice; take one out")
            found[entry.name] = entry
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def read_families(path: Path) -> list[PublicStudent]:
    """The students of one TOML file: its `[[family]]` tables hold what their `models` share.

    Raises: CorruptFile.
    """
    try:
        families = tomllib.loads(path.read_text(encoding="utf-8"))["family"]
        shared = [(family.pop("models"), family) for family in families]
        return [_entry(model, facts) for models, facts in shared for model in models]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise CorruptFile(f"{path}: not an index of students ({error}); install limbeck again") from error
    except ValidationError as error:
        raise CorruptFile(f"{path}: {first_problem(error, 'entry')}") from error


def _entry(model: str, facts: dict[str, Any]) -> PublicStudent:
    name = model.rsplit("/", 1)[-1]
    asked = name.rsplit(".", 1)[0] if facts["library"] == "open_clip" else model
    return PublicStudent.model_validate(dict(facts, name=name, model=asked))


def list_public(task: str | None = None, library: str | None = None) -> list[PublicStudent]:
    """Known students of a task and a library, by name; all where neither is given.

    Raises: UnknownName for a task or a library that none has.
    """
    for kind, given, known in (("task", task, get_args(PublicTask)), ("library", library, get_args(Library))):
        if given is not None and given not in known:
            raise UnknownName(kind, given, known, "of public students")
    entries = public_students().values()
    return [e for e in entries if task in (None, e.task) and library in (None, e.library)]


def find_public(name: str) -> PublicStudent:
    """One of them, also by the name with its owner: 'stabilityai/sdxl-turbo'.

    Raises: UnknownName with near names.
    """
    known = public_students()
    plain = name.rsplit("/", 1)[-1]
    entry = known.get(plain)
    if entry is None or name not in (entry.name, entry.model):
        raise UnknownName("public student", name, known)
    return entry


def load_public(name: str, pretrained: bool = True) -> Any:
    """Load somebody else's student through its own library; nothing here is ours.

    Returns: what that library gives: a torch module in eval mode of timm, open_clip (with `preprocess` and
        `tokenizer`) and transformers, a pipeline of diffusers. A timm model gets its `preprocess`, a PIL image to a
        tensor (C, H, W).

    Args:
        pretrained: False builds the architecture alone; timm and open_clip then fetch nothing, transformers its config.

    Raises: UnknownName with near names; ExtraMissing; ConfigError for a library that limbeck does not call; HubError
        where the weights cannot be fetched.
    """
    from limbeck.zoo.hub_errors import hub_errors

    entry = find_public(name)
    if entry.library not in _LOADERS:
        lines = "; ".join(line for line in entry.code.splitlines() if line)
        raise ConfigError(f"{entry.name} is loaded by its own package ({entry.install}): {lines}")
    if entry.library == "diffusers" and not pretrained:
        raise ConfigError(f"{entry.name} is a pipeline of diffusers, which has no architecture apart from its weights")
    with hub_errors(f"{entry.name} cannot be fetched"):
        return _LOADERS[entry.library](entry, pretrained)


def _load_timm(entry: PublicStudent, pretrained: bool) -> Any:
    import timm
    from timm.data import create_transform, resolve_model_data_config  # pyright: ignore[reportPrivateImportUsage]

    model: Any = timm.create_model(entry.model, pretrained=pretrained).eval()
    model.preprocess = create_transform(**resolve_model_data_config(model), is_training=False)
    return model


def _load_open_clip(entry: PublicStudent, pretrained: bool) -> Any:
    from limbeck.engine.registry import require

    open_clip = require("open_clip", f"loading {entry.name}", "multimodal")
    tag = entry.tag if pretrained else None
    model, _, preprocess = open_clip.create_model_and_transforms(entry.model, pretrained=tag)
    model.preprocess, model.tokenizer = preprocess, open_clip.get_tokenizer(entry.model)
    return model.eval()


def _load_transformers(entry: PublicStudent, pretrained: bool) -> Any:
    from limbeck.engine.registry import require

    kind = getattr(require("transformers", f"loading {entry.name}", "multimodal"), str(entry.cls))
    if pretrained:
        return kind.from_pretrained(entry.model).eval()
    return kind(kind.config_class.from_pretrained(entry.model)).eval()


def _load_diffusers(entry: PublicStudent, pretrained: bool) -> Any:
    from limbeck.engine.registry import require

    library = require("diffusers", f"loading {entry.name}", "multimodal")
    kind = getattr(library, str(entry.cls))
    if entry.kind == "unet":
        pipe = kind.from_pretrained(entry.base, unet=library.UNet2DConditionModel.from_pretrained(entry.model))
    else:
        pipe = kind.from_pretrained(entry.base or entry.model)
    if entry.kind == "lora":
        pipe.load_lora_weights(entry.model)
    if entry.scheduler:
        pipe.scheduler = getattr(library, entry.scheduler).from_config(pipe.scheduler.config)
    return pipe


_LOADERS = dict(timm=_load_timm, open_clip=_load_open_clip, transformers=_load_transformers, diffusers=_load_diffusers)
