"""Sampling codes from a prior, with a cache."""
