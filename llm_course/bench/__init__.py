"""Recorded long runs and the comparison with other libraries."""
