"""WRITE: copies the kept pairs into new shards."""
