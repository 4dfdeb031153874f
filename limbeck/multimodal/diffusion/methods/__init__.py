"""Step distillation of diffusion models: one method, one file."""
