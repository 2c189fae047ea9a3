"""Files, memory, processes and resumed runs: nothing here knows what a model is."""
