"""Data sets of semantic segmentation; each gives whole batches of uint8 images with label maps."""
