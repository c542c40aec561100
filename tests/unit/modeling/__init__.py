"""Tests of placements, compiler and loading without a model."""
