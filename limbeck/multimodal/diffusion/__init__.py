"""Step distillation of diffusion models: from dozens of steps to one, and what it costs in quality and diversity."""
