"""mmdetection3d imports mmcv's operators: they are put in place before any test of the package imports it."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("mmcv") is not None:
    from limbeck.engine.mmcv_ops import install

    install()
