"""Diffusion models of many steps to students of few: base models, samplers, hand-over between the two."""
