"""Recipes, run folders and the stages of a run."""
