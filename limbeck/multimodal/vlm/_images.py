"""Images of any kind as PIL images, thumbnails and hashes."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from limbeck.engine.data_files import BROKEN_IMAGE
from limbeck.engine.weights import sha256_file
from limbeck.errors import ConfigError, CorruptFile, DataMissing

Picture = str | Path | Image.Image | Any  # Any: an array or CPU tensor (C, H, W) of uint8, C = 1 or 3

PIXELATED = 64  # images of at most so many pixels a side are kept as they are


def as_image(picture: Picture, what: str = "") -> Image.Image:
    """A decoded RGB image, turned as its EXIF data says; transparent parts on white.

    Args:
        picture: a path, a PIL image, or pixels (C, H, W) uint8.
        what: names the image in errors, where it is no path.
    Raises: DataMissing and CorruptFile, naming the file; ConfigError for pixels of another kind.
    """
    if isinstance(picture, (str, Path)):
        image = _opened(Path(picture))
    elif isinstance(picture, Image.Image):
        image = picture
    else:
        pixels = np.asarray(picture)
        if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or pixels.dtype != np.uint8 or 0 in pixels.shape:
            raise ConfigError(
                f"image{' ' + what if what else ''}: pixels have to be uint8 (1 or 3, H, W); "
                f"got {pixels.dtype} {pixels.shape}"
            )
        rows = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        image = Image.fromarray(rows[:, :, 0] if pixels.shape[0] == 1 else rows)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        alpha = image.convert("RGBA")
        image = Image.new("RGBA", alpha.size, "white")
        image.alpha_composite(alpha)
    return image.convert("RGB")


def thumbnail(image: Image.Image, side: int) -> Image.Image:
    """The image reduced to at most `side` pixels a side; smaller ones stay."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def data_uri(image: Image.Image) -> str:
    """The image inside a URI: lossless where it is tiny, else JPEG."""
    kind = "png" if max(image.size) <= PIXELATED else "jpeg"
    buffer = io.BytesIO()
    image.save(buffer, kind, **({} if kind == "png" else {"quality": 85, "optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def content_hash(picture: Picture) -> str:
    """sha256 of a file's bytes, or of an array's or PIL image's size and pixels."""
    if isinstance(picture, (str, Path)):
        path = Path(picture)
        try:
            return sha256_file(path)
        except FileNotFoundError as error:
            raise DataMissing(f"{path}: there is no such image; check the folder") from error
        except OSError as error:
            raise CorruptFile(f"{path}: cannot be read ({error.strerror})") from error
    if isinstance(picture, Image.Image):
        head, body = f"{picture.mode}{picture.size}", picture.tobytes()
    else:
        pixels = np.ascontiguousarray(picture)
        head, body = f"{pixels.dtype}{pixels.shape}", pixels.tobytes()
    return hashlib.sha256(head.encode() + body).hexdigest()


def _opened(path: Path) -> Image.Image:
    if not path.is_file():
        raise DataMissing(f"{path}: there is no such image; check the folder")
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except BROKEN_IMAGE as error:
        reason = str(error).replace(repr(str(path)), "the file")
        raise CorruptFile(f"{path}: cannot be read as an image ({reason}); replace it or take it away") from error
