"""Measures throughput, where the time goes, and whether engines agree with their models."""
