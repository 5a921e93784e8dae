"""Foundations of all other packages: devices, files, batches, memory, progress, spans, errors."""
