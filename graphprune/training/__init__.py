"""Pruning during the training of a user's own module: rounds, regularizers, masks, and callbacks of trainers."""
