"""Numerical parity of models with transformers."""
