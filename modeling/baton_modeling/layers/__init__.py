"""Modules that families are made of. Each declares placements; none communicates."""
