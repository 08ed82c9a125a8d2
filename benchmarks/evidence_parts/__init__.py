"""The parts of the evidence page (docs/evidence.md), each computed from benchmarks/results by a rule."""
