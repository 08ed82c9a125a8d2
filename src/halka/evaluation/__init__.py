"""Evaluation: answers by batched generation, scored by metrics with intervals.

Public: `generation.generate`, `evaluating` (`evaluate`, `perplexity`), `metrics` (`score`, `find_metric`, `METRICS`).
`validation_score.ValidationScore` is what a training may choose its best evaluation by.
"""
