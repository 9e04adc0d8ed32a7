"""Engines that spread a command's work: this machine's processes, or a Ray cluster."""
