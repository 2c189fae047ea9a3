"""Calibration texts, and statistics of activations over them."""
