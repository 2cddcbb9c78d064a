"""From logits and labels to a sum and the count of its labels."""
