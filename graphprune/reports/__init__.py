"""Reports of runs: tables, comparisons, heat maps, graph files and the viewer."""
