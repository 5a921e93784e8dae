"""Near-duplicates: finds groups of similar rows by features or fingerprints, and the representative of each group."""
