"""Counts, metrics and the prediction log."""
