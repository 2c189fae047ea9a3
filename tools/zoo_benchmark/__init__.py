"""The parts of tools/benchmark_zoo.py: what a tool does with a model, how it is judged, and how it is reported."""
