"""Wrong cuts, whether they change any output, and whether the proof refuses them."""
