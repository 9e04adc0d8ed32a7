"""Published checkpoints of other systems become our model folders; one importer for each format."""
