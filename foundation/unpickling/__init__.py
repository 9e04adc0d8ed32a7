"""Reads torch's pickled files without running anything that is in them: tensors and plain values, nothing else."""
