"""Controls of a diffusion model: low-rank adapters, what they change, and whether they carry over."""
