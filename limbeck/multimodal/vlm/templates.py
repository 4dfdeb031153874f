"""Prompt templates by data set; '{}' stands for the name of a class."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.errors import ConfigError, UnknownName

_PHOTO = ("a photo of a {}.",)

# Those of the official few-shot data code (DHO, PCoreSet, and Tip-Adapter and CoOp before them).
TEMPLATES: dict[str, tuple[str, ...]] = {
    "photo": _PHOTO,
    "caltech101": _PHOTO,
    "cars": _PHOTO,
    "sun397": _PHOTO,
    "dtd": ("{} texture.",),
    "eurosat": ("a centered satellite photo of {}.",),
    "fgvc": ("a photo of a {}, a type of aircraft.",),
    "food101": ("a photo of {}, a type of food.",),
    "flowers102": ("a photo of a {}, a type of flower.",),
    "pets": ("a photo of a {}, a type of pet.",),
    "ucf101": ("a photo of a person doing {}.",),
    "imagenet": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
}


def templates_for(name: str) -> list[str]:
    """The templates of a data set, by a name such as 'dtd'; case does not matter.

    Raises: UnknownName with near names.
    """
    if name.lower() not in TEMPLATES:
        raise UnknownName("templates", name, TEMPLATES, "(a template of your own needs '{}' for the class)")
    return list(TEMPLATES[name.lower()])


def check_templates(templates: str | Sequence[str]) -> list[str]:
    """Templates as a list: of a data set's name, of one template, or of several.

    Raises: ConfigError for none, or one without '{}'; UnknownName for a name of no data set.
    """
    if isinstance(templates, str):
        found = [templates] if "{}" in templates else templates_for(templates)
    else:
        found = list(templates)
    if not found:
        raise ConfigError("templates is empty; give at least one, such as 'a photo of a {}.'")
    for template in found:
        if not isinstance(template, str) or "{}" not in template:
            raise ConfigError(f"template {template!r} has no '{{}}', the place of the class name; add it")
    return found
