"""Reports on runs: report.html, topics, single pairs, and comparisons of two runs."""
