"""Demonstrations: record, store, load, normalise."""
