"""From files to documents, examples and pairs."""
