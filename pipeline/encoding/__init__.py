"""Images into a token dataset: a frozen plan, shared among any number of processes, each shard written once."""
