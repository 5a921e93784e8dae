"""Near-duplicates: who is like whom (neighbours, fingerprints) → sets, and who stays of each (sets)."""
