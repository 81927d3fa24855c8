"""From the fingerprint of a dataset to its plans: pure functions, no torch."""
