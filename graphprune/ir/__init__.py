"""The program: an FX graph with its weights, how both are stored, and how a graph is printed."""
