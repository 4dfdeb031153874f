"""`_base_/digits.py` for the demo, as a benchmark of its own: a model of 4 steps to students of 1.

A demo is no measurement. All its runs are to take a minute on two cores, so that the network has a quarter of the
weights, teacher and students have 192 and 96 updates, the teacher 8 network calls an image, where the benchmark's has
100, and figures are of 400 images, where they are of 1,000 there.
"""

from limbeck.multimodal.diffusion.configs._base_.methods import methods as _methods

_base_ = ["./_base_/digits.py"]

benchmark = "diffusion-digits-demo"
pair = "unet-1step"
title = "Handwritten digits (8×8), a diffusion model of 4 steps → 1"
data = dict(
    val=dict(count=100),
    test=dict(count=400),
)
_network = dict(block_out_channels=(16, 32))
teacher = dict(network=_network, sampler=dict(steps=4))
student = dict(network=_network, sampler=dict(steps=1))
teacher_recipe = dict(epochs=12, optimizer=dict(lr=2e-3))
recipe = dict(epochs=6, optimizer=dict(lr=1e-3))
_every = _methods(student, {}, steps=1, guidance=1.5, start=4, t_min=31)
methods = {name: _every[name] for name in ("FromTeacher", "PD")}
