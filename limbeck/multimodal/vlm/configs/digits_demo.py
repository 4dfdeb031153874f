"""`digits_1shot.py` for the demo, as a benchmark of its own."""

_base_ = ["./digits_1shot.py"]

benchmark = "dho-digits-demo"
pair = "clip_noisy-cnn"
title = "Handwritten digits (8×8), one label a class, zero-shot teacher"
