"""EVALUATE: zero-shot classification and retrieval with two towers, and how sure a difference is."""
