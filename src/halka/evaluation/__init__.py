"""Evaluation: answers, and the metrics and intervals that they are scored by."""
