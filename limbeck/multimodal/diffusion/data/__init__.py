"""Data sets of diffusion models."""
