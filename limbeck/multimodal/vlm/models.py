"""Zero-shot and few-shot teachers by name: any model of open_clip, the joined desk teacher, and a tiny one.

Every one is a `ZeroShotClassifier`: `forward` gives logits, `features` normalised image embeddings, `embedding` is
their tap. With `pretrained=False` the same tensors are there, their values to be loaded: nothing is read or encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from limbeck.engine.inputs import describe
from limbeck.engine.lite_weights import LITE_MEAN, LITE_STD
from limbeck.engine.pixels import input_of
from limbeck.engine.registry import DATASETS, MODELS
from limbeck.errors import ConfigError
from limbeck.multimodal.vlm._few_shot import settings_of
from limbeck.multimodal.vlm._joined import JOINED_DIM, JOINED_SCALE, LiteTower, joined_encoder, read_map
from limbeck.multimodal.vlm._open_clip import check_tag, empty_visual, image_facts, image_side, load_towers
from limbeck.multimodal.vlm._tiny_clip import (
    DIGIT_WORDS,
    TINY_DIM,
    TINY_MEAN,
    TINY_SIZE,
    TINY_STD,
    TINY_TEMPLATES,
    TinyCLIP,
    tiny_clip,
)
from limbeck.multimodal.vlm.clap import CLAP, CLAPSettings
from limbeck.multimodal.vlm.classifier import ZeroShotClassifier
from limbeck.multimodal.vlm.text import (
    TextAverage,
    TextEncoder,
    check_classes,
    class_embeddings,
    class_prompts,
    text_classifier,
)
from limbeck.multimodal.vlm.tip_adapter import TipAdapterF, TipAdapterSettings

__all__ = ["CLIPTower", "ZeroShot", "ZeroShotJoined", "ZeroShotTiny", "clap_model", "tip_adapter_model"]

Classes = Sequence[str] | Mapping[str, Any]


@MODELS.register_module()
def ZeroShot(  # noqa: N802 - configs name it as a class
    model: str,
    classes: Classes,
    tag: str | None = None,
    templates: str | Sequence[str] = "photo",
    text_average: TextAverage = "normalised",
    logit_scale: float | None = None,
    pretrained: bool = True,
) -> ZeroShotClassifier:
    """Any open_clip model as a zero-shot classifier, with the mean, deviation and size of its own input.

    Text embeddings are computed once and kept in the cache folder. A constant that SigLIP adds to every logit is left
    out: it changes no distribution over classes.

    Args:
        model: open_clip's name, 'hf-hub:ORG/REPO' or 'local-dir:FOLDER'.
        classes: K names, in the order of labels; or a data set's config, whose names are taken.
        tag: of open_clip's weights, or a file of weights; none for a hub's or a folder's model, which has its own. A
            file of OpenAI's weights wants the model's '-quickgelu' name; their tag finds the activation itself.
        templates: prompts with '{}', or the name of a data set's.
        text_average: 'normalised' or 'raw', see `limbeck.multimodal.vlm.text.average_prompts`.
        logit_scale: s; the model's own where not given. DHO's and PCoreSet's codes write 100.
        pretrained: False builds the image tower and empty buffers.
    Raises: ExtraMissing; UnknownName for a model or tag; ConfigError for classes, templates, or a tag that is missing;
        DataMissing for weights that cannot be fetched; CorruptFile for those that do not fit.
    """
    classes = _names(classes)
    class_prompts(classes, templates)  # mistakes are told before gigabytes are read
    facts = image_facts(model, tag)
    if pretrained:
        check_tag(model, tag)
        towers = load_towers(model, tag, facts)
        made = ZeroShotClassifier(towers.visual, facts.dim, len(classes))
        _encode(made, towers.encoder, classes, templates, text_average, towers.scale, logit_scale)
    else:
        made = ZeroShotClassifier(empty_visual(facts), facts.dim, len(check_classes(classes)))
    return _described(made, facts.mean, facts.std, (3, *image_side(made.image)))


@MODELS.register_module()
class CLIPTower(nn.Module):
    """An open_clip model's image tower as backbone of a `DualHead`: images to embeddings (B, d), not normalised.

    Args:
        model, tag, templates, classes, pretrained: see `ZeroShot`; `classes` and `templates` are for heads that start
            from text (`init='text'` or 'text_raw').
    Raises: as `ZeroShot`.
    """

    def __init__(
        self,
        model: str,
        classes: Classes,
        tag: str | None = None,
        templates: str | Sequence[str] = "photo",
        text_average: TextAverage = "normalised",
        pretrained: bool = True,
    ) -> None:
        super().__init__()
        whole = ZeroShot(model, classes, tag, templates, text_average, pretrained=pretrained)
        self.image = whole.image
        self._text = whole.text.T.clone(), whole.text_norms.clone()  # no buffers: heads that start from it keep it
        normalization, size = input_of(whole)
        describe(self, normalization.mean, normalization.std, size)

    def text_classifier(self, raw: bool = False) -> Tensor:
        """Rows (K, d) of length 1; `raw` leaves them the length that the average over prompts has."""
        text, norms = self._text
        return text * norms[:, None] if raw else text

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, d)."""
        found = self.image(x)
        return found[0] if isinstance(found, tuple) else found


@MODELS.register_module()
def ZeroShotJoined(  # noqa: N802
    classes: Sequence[str],
    templates: str | Sequence[str] = "photo",
    input_size: Sequence[int] = (3, 160, 160),
    text_average: TextAverage = "normalised",
    logit_scale: float = JOINED_SCALE,
    pretrained: bool = True,
) -> ZeroShotClassifier:
    """The desk teacher: EfficientNet-Lite2 and MiniLM joined by a ridge map; needs no hub.

    See `limbeck.multimodal.vlm._joined`. Several templates are averaged after the text mean is subtracted from each.

    Args:
        classes: K names, in the order of labels. templates, text_average: see `ZeroShot`.
        input_size: (3, height, width).
        logit_scale: s; `limbeck.multimodal.vlm.logit_scale` has rules to choose one for other classes.
        pretrained: False builds the image tower and empty buffers.
    Raises: ExtraMissing ('pretrained' and 'multimodal'); ConfigError; CorruptFile.
    """
    class_prompts(classes, templates)
    tower = LiteTower()
    made = ZeroShotClassifier(tower, JOINED_DIM, len(check_classes(classes)))
    if pretrained:
        tower.load(read_map()["map"])
        _encode(made, joined_encoder(), classes, templates, text_average, logit_scale)
    return _described(made, (LITE_MEAN,) * 3, (LITE_STD,) * 3, input_size)


@MODELS.register_module()
def ZeroShotTiny(  # noqa: N802
    classes: Sequence[str] = DIGIT_WORDS,
    templates: str | Sequence[str] = TINY_TEMPLATES,
    caption_noise: float = 0.4,
    seed: int = 0,
    text_average: TextAverage = "normalised",
    logit_scale: float | None = None,
    pretrained: bool = True,
) -> ZeroShotClassifier:
    """A CLIP of 123 k parameters for the 8 × 8 digits, trained once in a few seconds and kept in the cache folder.

    Its own images are the last 297 of the digits' train split: a student's are the first 781, `limit=781`.

    Args:
        classes: digits, as words or figures. templates: of the words it knows, see `TINY_TEMPLATES`.
        caption_noise: share of wrong captions that it is trained on, in [0, 1].
        seed: of its training.
        logit_scale: s; the learned one where not given.
        pretrained: False builds the image tower and empty buffers.
    Raises: ConfigError; UnknownName for a word that it does not know; OutputError.
    """
    class_prompts(classes, templates)
    clip = tiny_clip(caption_noise, seed) if pretrained else TinyCLIP()
    made = ZeroShotClassifier(clip.visual, TINY_DIM, len(check_classes(classes)))
    if pretrained:
        encoder = TextEncoder(lambda prompts: clip.encode_text(clip.tokenizer(prompts)), {})
        scale = float(clip.logit_scale.detach().exp())
        _encode(made, encoder, classes, templates, text_average, scale, logit_scale, cache=False)
    return _described(made, TINY_MEAN, TINY_STD, TINY_SIZE)


# --- few-shot: a zero-shot teacher and what is fitted to few labelled images; see `limbeck.multimodal.vlm.few_shot` ---


@MODELS.register_module(name="TipAdapterF")
def tip_adapter_model(
    zero_shot: Mapping[str, Any], support: int, settings: Mapping[str, Any] | None = None, pretrained: bool = False
) -> TipAdapterF:
    """A zero-shot teacher to be fitted as Tip-Adapter-F, or the shape of a fitted one for its weights.

    Args:
        zero_shot: config of the teacher that it adapts.
        support: labelled images that it is fitted on: shots times classes.
        settings: of fitting, see `TipAdapterSettings`; batches follow the run's seed.
        pretrained: True gives the zero-shot teacher, unadapted: alpha is 0.
    Raises: ConfigError, UnknownName, and what building the teacher raises.
    """
    return TipAdapterF(_inner(zero_shot, pretrained), support, settings_of(TipAdapterSettings, settings))


@MODELS.register_module(name="CLAP")
def clap_model(
    zero_shot: Mapping[str, Any], support: int, settings: Mapping[str, Any] | None = None, pretrained: bool = False
) -> CLAP:
    """A zero-shot teacher to be fitted as CLAP, or the shape of a fitted one for its weights.

    Args:
        zero_shot, support, pretrained: see `tip_adapter_model`. settings: see `CLAPSettings`.
    Raises: ConfigError, UnknownName, and what building the teacher raises.
    """
    return CLAP(_inner(zero_shot, pretrained), support, settings_of(CLAPSettings, settings))


def _inner(zero_shot: Mapping[str, Any], pretrained: bool) -> ZeroShotClassifier:
    found = MODELS.make({**zero_shot, "pretrained": pretrained}, where="as zero_shot")
    if not isinstance(found, ZeroShotClassifier):
        raise ConfigError(f"zero_shot is a zero-shot teacher such as ZeroShot; got {zero_shot.get('type')!r}")
    return found


def _names(classes: Classes) -> Sequence[str]:
    if not isinstance(classes, Mapping):
        return classes
    return DATASETS.make(classes, where="as classes of a teacher").classes


def _encode(
    made: ZeroShotClassifier,
    encoder: TextEncoder,
    classes: Sequence[str],
    templates: str | Sequence[str],
    text_average: TextAverage,
    own_scale: float,
    logit_scale: float | None = None,
    cache: bool = True,
) -> None:
    scale = own_scale if logit_scale is None else logit_scale
    if scale <= 0:
        raise ConfigError(f"logit_scale is above 0; got {scale}")
    embeddings = class_embeddings(encoder, classes, templates, text_average=text_average, cache=cache)
    made.set_text(*text_classifier(embeddings), scale)


def _described(
    made: ZeroShotClassifier, mean: Sequence[float], std: Sequence[float], size: Sequence[int]
) -> ZeroShotClassifier:
    return cast(ZeroShotClassifier, describe(made, mean, std, size))
