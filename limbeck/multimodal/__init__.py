"""Vision-language and other multimodal distillation."""
