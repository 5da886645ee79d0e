"""Policies and their presets."""
