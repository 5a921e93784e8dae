"""Defaults of the options for a vision-language model: the command line shows them before it imports the client."""

AUTO = "auto"
CONCURRENCY = 128
"""Requests at once; vLLM runs up to 256 sequences of a 9 B model on one GPU of 80 GB."""
