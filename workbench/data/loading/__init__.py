"""Decoding in processes of their own, and keeping what was decoded."""
