"""Halka: a large model stays as it is, a small part of it is trained."""

from halka.methods import IA3, BitFit, Bottleneck, DoRA, Full, LoRA, Prefix, Prompt
from halka.models import adapt
from halka.models.loading import load_base
from halka.store import load, save
from halka.training import TrainConfig, train

__version__ = "0.1.0"
__all__ = [
    "IA3",
    "BitFit",
    "Bottleneck",
    "DoRA",
    "Full",
    "LoRA",
    "Prefix",
    "Prompt",
    "TrainConfig",
    "adapt",
    "load",
    "load_base",
    "save",
    "train",
]
