"""Distillation methods of 3D detection on point clouds; each file registers its own."""
