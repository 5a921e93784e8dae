"""The models: what they are (cards), how they are built (export), kept (store) and run (session)."""
