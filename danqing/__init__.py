"""DanQing Engine: turns crawled Chinese image-text pairs into a training set."""

__version__ = "0.1.0"
