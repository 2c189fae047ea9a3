"""The parts of tools/benchmark_recipes.py: one run in a process of its own, its record, the table and the plots."""
