"""HTML, scatter plots, progress bars and units, for people who look."""
