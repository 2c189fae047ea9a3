"""Calibration texts, and the moments of activations over them."""
