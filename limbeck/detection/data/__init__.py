"""Data sets of object detection; each gives whole batches of uint8 images with padded boxes."""
