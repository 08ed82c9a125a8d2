"""Interop: the base with one adapter as other tools take it: Trainer, pipelines, TRL (`view`); lm-eval (`lm_eval`)."""
