"""Baton's wire protocol, version 1. Generated; edit proto/baton/v1/*.proto and run make proto."""
