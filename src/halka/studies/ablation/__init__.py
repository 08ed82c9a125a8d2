"""What an adapter and what retrieval bring: base and adapter, alone and with passages, and one tuned for passages."""

from halka.studies.ablation.runs import found, study
from halka.studies.ablation.settings import Ablation, read_ablation
from halka.studies.ablation.summary import Summary, summarise

__all__ = ["Ablation", "Summary", "found", "read_ablation", "study", "summarise"]
