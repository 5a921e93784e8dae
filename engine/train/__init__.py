"""TRAIN: contrastive training of an image and a text tower on the pairs that runs have kept."""
