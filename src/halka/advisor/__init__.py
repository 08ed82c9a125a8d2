"""The advisor: prompt, retrieve, fine-tune, or get data or another base first? Short probes measure, rules decide."""

from halka.advisor.advice import Advice, advise_from
from halka.advisor.evidence import Evidence
from halka.advisor.request import Request
from halka.advisor.runner import probe
from halka.advisor.words import CHOICES, PROBES, Choice

__all__ = ["CHOICES", "PROBES", "Advice", "Choice", "Evidence", "Request", "advise_from", "probe"]
