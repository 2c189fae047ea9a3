"""Models of the Hugging Face hub: their commits in records, and uploads."""
