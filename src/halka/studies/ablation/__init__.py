"""What adapter and retrieval bring: base and adapter, alone and with passages, and an adapter tuned for passages."""

from halka.studies.ablation.runs import results, run
from halka.studies.ablation.settings import Ablation, read_ablation
from halka.studies.ablation.summary import Summary, summarise

__all__ = ["Ablation", "Summary", "read_ablation", "results", "run", "summarise"]
