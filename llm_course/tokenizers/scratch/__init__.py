"""Tokenizers written out, as chapter 03 teaches them."""
