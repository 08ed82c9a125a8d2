"""Studies that measure methods against each other: comparisons (`compare`) and ablations of adapter and retrieval.

`runner` runs a study's parts in processes of their own; `measure` is one run of a comparison, `experiment` its file.
"""
