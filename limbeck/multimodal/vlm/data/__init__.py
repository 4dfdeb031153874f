"""Data sets of vision-language models; each gives whole batches of uint8 images."""
