"""Hugging Face model folders: writing weights, configuration and the other files."""
