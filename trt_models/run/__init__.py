"""Sessions and tokenizers that run models."""
