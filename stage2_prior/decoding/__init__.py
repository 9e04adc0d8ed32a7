"""Sampling codes from a prior: a cached engine, guidance, filters."""
