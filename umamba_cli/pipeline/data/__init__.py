"""What lies on disk: images, dataset.json, workspace, splits, the preprocessed store."""
