"""Rollouts, statistics and reports."""
