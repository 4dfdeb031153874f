"""Pictures beside the page: examples of a test split, masks over training, chosen voxels; planned, drawn, checked."""
