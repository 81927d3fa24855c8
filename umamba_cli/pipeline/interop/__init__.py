"""Formats of other systems (nnU-Net, released U-Mamba, Medical Segmentation Decathlon)."""
