"""Recipes: named pipelines, what they need, and which one suits a module."""
