"""Masks over groups that are learned or grow while a model is trained."""
