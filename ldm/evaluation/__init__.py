"""The exact benchmark of the shapes world, and what else measures a model."""
