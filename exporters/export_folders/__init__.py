"""Folders of exported models: written, reported, and checked again."""
