"""The advisor: short probes of the user's own base, data and hardware, and a verdict that follows from them alone."""

from halka.advising.advice import CHOICES, Advice
from halka.advising.evidence import Evidence
from halka.advising.need import Need
from halka.advising.probing import PROBES, probe
from halka.advising.verdict import advise_from

__all__ = ["CHOICES", "PROBES", "Advice", "Evidence", "Need", "advise_from", "probe"]
