"""Metrics and per-case tables."""
