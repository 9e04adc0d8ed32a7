"""Evaluation: distances between sets of images, scores of tokenizers and priors."""
