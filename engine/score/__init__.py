"""SCORE: runs the stages on every row of every shard, once."""
