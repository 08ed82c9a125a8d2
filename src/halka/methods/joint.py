"""Several methods in one adapter, each at targets of its own: a LoRA with a trained head, a prefix with bottlenecks."""

from __future__ import annotations

from typing import ClassVar, cast

from halka.core import Method, Part, Target, wants
from halka.methods._fields import method
from halka.util.errors import HalkaError


@method
class Joint:
    """The parts of all `methods`, trained, saved and used as one adapter.

    Raises HalkaError for fewer than two, for one within another, for one that trains all weights, and where two act on
    one target.
    """

    name: ClassVar[str] = "joint"
    plain: ClassVar[str] = "Several methods in one adapter, each at places of its own."
    paper: ClassVar[str] = "prefix and parallel bottleneck together: He et al. 2022, arXiv:2110.04366"
    lr: ClassVar[float] = 1e-3  # an instance has the lowest of its methods', but see `models.rates.own_rate`

    methods: tuple[Method, ...]

    def __post_init__(self) -> None:
        methods = cast(tuple[object, ...], self.methods)  # what a tuple holds is not checked before
        fit = [isinstance(one, Method) and not isinstance(one, type) and one.name != self.name for one in methods]
        if len(fit) < 2 or not all(fit):
            raise HalkaError("joint: give two or more methods, none of them a Joint, such as halka.LoRA(), halka.IA3()")
        if whole := next((one.name for one in self.methods if "base" in one.roles()), None):
            raise HalkaError(f"joint: {whole} trains all of the base's weights: nothing is left to join it with")
        object.__setattr__(self, "lr", min(one.lr for one in self.methods))

    def roles(self) -> tuple[str, ...]:
        return tuple(role for one in self.methods for role in one.roles())

    def build(self, target: Target) -> Part | None:
        wanting = [one for one in self.methods if wants(one.roles(), target)]
        built = [(one.name, part) for one in wanting if (part := one.build(target)) is not None]
        if len(built) > 1:
            both = " and ".join(name for name, _ in built)
            raise HalkaError(f"{both} both act on {target.name}: narrow the targets of one")
        return built[0][1] if built else None


def primary(method: Method) -> Method:
    """The first of a joint method's; else the one there is."""
    return method.methods[0] if isinstance(method, Joint) else method


def methods_of(method: Method) -> tuple[Method, ...]:
    """The methods that a joint method is made of; of any other, itself alone."""
    return method.methods if isinstance(method, Joint) else (method,)


def joined_with(method: Method, other: Method) -> Joint:
    """`method` joined with `other`, also where it is joint itself."""
    return Joint((*methods_of(method), other))
