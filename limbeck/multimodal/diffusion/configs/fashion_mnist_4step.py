"""`_base_/fashion_mnist.py`, students of 4 steps."""

from limbeck.multimodal.diffusion.configs._base_.fashion_mnist import _requests
from limbeck.multimodal.diffusion.configs._base_.fashion_mnist import student as _student
from limbeck.multimodal.diffusion.configs._base_.methods import methods as _methods

_base_ = ["./_base_/fashion_mnist.py"]

pair = "unet-4step"
title = "Fashion-MNIST (28×28), 50 steps → 4"
teacher_of = "multimodal/diffusion/fashion_mnist_1step"
student = dict(sampler=dict(steps=4))
methods = _methods(dict(_student, sampler=dict(steps=4)), _requests, steps=4, guidance=1.5, start=16, t_min=31)
