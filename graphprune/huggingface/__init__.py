"""Folders of transformers models: their configuration, their classes, and what those can hold."""
