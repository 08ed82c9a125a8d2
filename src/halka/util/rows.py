"""How a batch's rows belong to those that were named: beam search makes several of one."""

from __future__ import annotations

from halka.util.errors import HalkaError


def repeats(batch: int, named: int) -> int:
    """How many rows of a batch each row that `use` named has become: beam search repeats each one in place.

    Raises HalkaError if the batch is not a multiple of the rows that were named.
    """
    times, rest = divmod(batch, named)
    if rest or not times:
        raise HalkaError(
            f"the batch has {batch} rows, but `use` named an adapter for each of {named}: "
            "give one name a row, or a single name for all rows"
        )
    return times
