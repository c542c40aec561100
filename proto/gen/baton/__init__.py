"""Baton's wire protocol."""
