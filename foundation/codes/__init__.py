"""Grids of codes: their contract, and token datasets on disk."""
