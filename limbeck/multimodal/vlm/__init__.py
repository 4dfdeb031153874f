"""Vision-language models to small classifiers: teachers, dual heads, active learning."""
