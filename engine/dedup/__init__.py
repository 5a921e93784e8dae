"""Near-duplicates: pairs (neighbours) → sets (groups) → who stays (representatives)."""
