"""Checkpoints that tests build for themselves."""
