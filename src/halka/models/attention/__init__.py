"""Attention that reads virtual tokens beside the text, and what brings them there."""
