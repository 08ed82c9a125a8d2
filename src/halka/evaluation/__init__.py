"""Evaluation: answers by batched generation, scored by metrics with intervals.

Public: `generation.generate`, `evaluating` (`evaluate`, `perplexity`), `metrics` (`score`, `find_metric`, `METRICS`).
"""
