"""U-Nets with and without Mamba, the scan, and the registry of models. Needs torch alone."""
