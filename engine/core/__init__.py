"""What all parts stand on: devices, files, batches, progress, spans."""
