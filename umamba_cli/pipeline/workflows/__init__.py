"""What joins stages: a training with its final validation, the demo."""
