"""Crop, normalise and resample, one case at a time."""
