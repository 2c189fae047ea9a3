"""Linear algebra of reconstructions: normal equations, low-rank factors, new biases."""
