"""DECIDE: from scores to verdicts, over the whole run."""
