"""A whole run: a preset and data in, a run directory out."""
