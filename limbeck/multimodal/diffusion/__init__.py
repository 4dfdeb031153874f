"""Diffusion models: distilling many steps into few, and what that costs in quality and diversity."""
