"""Training of pruned models towards the dense ones: data, losses, trained weights, and the folders that result."""
