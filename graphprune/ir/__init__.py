"""Programs: an FX graph with its weights, storage of both, and the printed form of graphs."""
