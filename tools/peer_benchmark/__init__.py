"""Parts of the comparison with Torch-Pruning."""
