"""Programs that run in a peer's own environment: they know the peer, and nothing of this project."""
