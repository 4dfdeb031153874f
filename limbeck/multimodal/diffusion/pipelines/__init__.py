"""Published text-to-image pairs, handed over through diffusers' own pipelines."""
