"""Interop: the base with one adapter as other tools take it: Trainer, pipelines, TRL, lm-eval."""
