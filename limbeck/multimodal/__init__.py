"""Vision-language and diffusion models."""
