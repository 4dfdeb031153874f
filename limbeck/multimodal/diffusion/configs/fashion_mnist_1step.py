"""`_base_/fashion_mnist.py`, students of 1 step."""

from limbeck.multimodal.diffusion.configs._base_.fashion_mnist import _requests
from limbeck.multimodal.diffusion.configs._base_.fashion_mnist import student as _student
from limbeck.multimodal.diffusion.configs._base_.methods import methods as _methods

_base_ = ["./_base_/fashion_mnist.py"]

pair = "unet-1step"
title = "Fashion-MNIST (28×28), 50 steps → 1"

methods = _methods(dict(_student, sampler=dict(steps=1)), _requests, steps=1, guidance=1.5, start=16, t_min=31)
