"""`_base_/digits.py`, students of 1 step."""

from limbeck.multimodal.diffusion.configs._base_.digits import _requests
from limbeck.multimodal.diffusion.configs._base_.digits import student as _student
from limbeck.multimodal.diffusion.configs._base_.methods import methods as _methods

_base_ = ["./_base_/digits.py"]

pair = "unet-1step"
title = "Digits (8×8), 50 steps → 1"
methods = _methods(_student, _requests, steps=1, guidance=1.5, start=16, t_min=31)
