"""Tensor-parallel ranks: rank 0 is the worker's process, the others follow its steps."""
