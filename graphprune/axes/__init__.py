"""The axis algebra, the groups of coupled axes, and what an operator rule promises."""
