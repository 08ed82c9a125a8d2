"""What an adapter and what retrieval bring: base and adapter, alone and with passages, and one tuned for passages."""

from halka.ablation.runs import found, study
from halka.ablation.settings import Ablation, read_ablation
from halka.ablation.summary import Summary, summarise

__all__ = ["Ablation", "Summary", "found", "read_ablation", "study", "summarise"]
