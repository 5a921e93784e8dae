"""DanQing Engine: crawled Chinese image-text pairs in, a training set out."""

__version__ = "0.1.0"
