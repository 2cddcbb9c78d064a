"""From rows of ids to batches."""
