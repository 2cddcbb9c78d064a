"""Answers by counting, and by a linear layer: what a neural model has to beat."""
