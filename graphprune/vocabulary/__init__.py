"""Vocabularies: tokens that are retained, tokenizers and identifiers that follow, and the rows of a model."""
