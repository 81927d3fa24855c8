"""What a training leaves behind and a prediction reads: `run.json`, checkpoints, and the network they describe."""
