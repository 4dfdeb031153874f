"""`_base_/digits.py`, students of 4 steps."""

from limbeck.multimodal.diffusion.configs._base_.digits import _requests
from limbeck.multimodal.diffusion.configs._base_.digits import student as _student
from limbeck.multimodal.diffusion.configs._base_.methods import methods as _methods

_base_ = ["./_base_/digits.py"]

pair = "unet-4step"
title = "Digits (8×8), 50 steps → 4"
teacher_of = "multimodal/diffusion/digits_1step"
student = dict(sampler=dict(steps=4))
methods = _methods(dict(_student, sampler=dict(steps=4)), _requests, steps=4, guidance=1.5, start=16, t_min=31)
