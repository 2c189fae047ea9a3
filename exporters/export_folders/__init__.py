"""Folders of exported models: writing, reports, and verification."""
