"""Published checkpoints in, diffusers folders and graphs out."""
