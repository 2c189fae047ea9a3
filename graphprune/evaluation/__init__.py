"""Quality of a model: perplexity, multiple-choice accuracy, and the loss under masks."""
