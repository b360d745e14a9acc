"""Frozen backbones: features computed once, and many heads trained on them at once."""
