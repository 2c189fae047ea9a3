"""Presentation: HTML, scatter plots, progress bars and units."""
