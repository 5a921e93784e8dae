"""SCORE: every row of every shard through the stages, once."""
