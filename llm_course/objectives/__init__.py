"""From ids to training examples and losses."""
