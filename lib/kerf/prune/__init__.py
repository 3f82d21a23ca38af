"""Pruning: which weights go, and how those that stay make up for it."""
