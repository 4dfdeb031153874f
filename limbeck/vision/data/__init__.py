"""Data sets of image classification; each gives whole batches of uint8 images."""
