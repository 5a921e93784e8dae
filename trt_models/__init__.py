"""Models: their cards, export to ONNX, storage, compilation to engines, and sessions that run them."""
