"""Vision-language models to small students: teachers, distillation from them, and active learning."""
