"""Errors that a user can act on. A `ValueError` that is none of these is a bug of Halka's or of a library."""

from __future__ import annotations


class HalkaError(ValueError):
    """What was asked for cannot be done; the message names the thing, the reason and the way out."""


class UnknownAdapterError(HalkaError):
    """No adapter of that name is in the model, the store or the folder; the message lists those that are."""


class PinnedFullError(HalkaError):
    """Pinned adapters leave an engine no room for another: not what was asked for is wrong, and later it may fit."""


class StoreAwayError(HalkaError):
    """A server that keeps passages does not answer, or cannot work: not what was asked for is wrong, and later it
    may be there again.
    """


class WrongBaseError(HalkaError):
    """An adapter was made for another base, another kind of base or another chat template."""


class ContextLengthError(HalkaError):
    """A prompt with its answer is longer than the base reads, or than there is memory for."""


class DamagedFolderError(HalkaError):
    """A folder or file is incomplete, changed since it was written, or holds what cannot be read safely."""


class DataError(HalkaError):
    """Examples that cannot be read or used; the message names the file and the row."""


class TrainingError(HalkaError):
    """Training cannot go on; the message says why and what to do."""


class DivergedError(TrainingError):
    """A loss or a gradient is no number any more; the message says what to change."""


class LostRankError(TrainingError):
    """Another of the processes that train together ended; its own message says why."""


class OutOfMemoryError(TrainingError):
    """The device's memory does not hold what was asked for; the message names what to make smaller."""
