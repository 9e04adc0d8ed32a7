"""Frozen networks that describe images, from packages: no hub, no code of others is run."""
