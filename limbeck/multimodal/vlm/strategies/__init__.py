"""Strategies of active learning: which unlabelled images to label next; one file each."""
