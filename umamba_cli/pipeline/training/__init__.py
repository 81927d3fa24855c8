"""Patches, augmentation, losses, schedule, checkpoints and the training loop."""
