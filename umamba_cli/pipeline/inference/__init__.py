"""Tiles, prediction and export to the grid of the image."""
