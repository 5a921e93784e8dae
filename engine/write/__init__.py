"""WRITE: the kept pairs as new shards."""
