"""The four families; each file writes out its own embeddings, blocks and heads."""
