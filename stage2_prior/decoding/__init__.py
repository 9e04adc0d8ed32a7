"""Sampling of codes from a prior: decoding engine with a cache, guidance, filters."""
