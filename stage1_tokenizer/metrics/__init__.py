"""How close reconstructions are to their images, image by image."""
