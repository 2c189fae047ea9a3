"""Examples that a model is trained on: of texts, and of the user's batches."""
