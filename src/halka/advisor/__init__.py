"""The advisor: short probes of the user's own base, data and hardware, and a verdict that follows from them alone."""

from halka.advisor.advice import CHOICES, Advice
from halka.advisor.evidence import Evidence
from halka.advisor.probing import PROBES, probe
from halka.advisor.request import Need
from halka.advisor.verdict import advise_from

__all__ = ["CHOICES", "PROBES", "Advice", "Evidence", "Need", "advise_from", "probe"]
