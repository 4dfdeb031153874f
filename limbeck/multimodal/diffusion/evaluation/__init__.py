"""Figures of generated images: features, distances, neighbours, and what real images have."""
