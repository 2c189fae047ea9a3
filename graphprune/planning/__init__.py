"""Budgets, plans and destinations, and what a score, an allocation or a reconstruction promises."""
