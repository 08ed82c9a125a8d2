"""Studies: one measured run, experiments, comparison of methods, ablation of adapter and retrieval."""
