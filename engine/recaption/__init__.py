"""RECAPTION: captions of the kept pictures by a vision-language model behind an OpenAI-compatible endpoint."""
