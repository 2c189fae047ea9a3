"""Hugging Face folders: written, and completed with the files beside the weights."""
