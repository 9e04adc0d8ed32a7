"""Distances between sets of images, and what a tokenizer scores on a whole set."""
