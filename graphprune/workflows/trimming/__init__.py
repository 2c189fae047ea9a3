"""Smaller vocabularies: tokens that a corpus does not need are removed from a model and its tokenizer."""
