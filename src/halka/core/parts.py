"""A method, and the parts that it builds for a base's targets.

Shape letters used in this project:
    B rows of a batch    T tokens    D hidden width    I, O a linear's widths, in and out    R rank or bottleneck width
    E experts            C choices: a token with one of its experts
    N tokens of a line, all rows' one after another
    L layers             H key/value heads             P virtual tokens (of a prefix or a prompt)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from halka.core.targets import Target
from halka.util.cached import Cached
from halka.util.divided import gathered


class Part(nn.Module):
    """What a method puts at one target: a `ModulePart`, a `VirtualPart` or a `WeightPart`. Parameters are fp32."""

    operands: tuple[str, ...] = ()  # the parameters that it reads by `cast` alone: training casts them once a step
    casts: Mapping[str, Tensor] = {}  # within `models.casting`, what was cast so

    def scale_of(self, operand: str) -> float:
        """What an operand is multiplied by once it is cast."""
        return 1.0

    def cast(self, name: str, dtype: torch.dtype) -> Tensor:
        """A parameter in `dtype`, times its factor; within `models.casting`, what was cast for the whole step."""
        cast = self.casts.get(name)
        if cast is not None and cast.dtype == dtype:
            return cast
        cast, scale = self.get_parameter(name).to(dtype), self.scale_of(name)
        return cast if scale == 1 else cast * scale

    def tie_parameters(self, others: Mapping[str, Part]) -> None:
        """Called once, when all parts of the adapter are built, by their targets' paths: some share parameters."""


class ModulePart(Part):
    """A part that edits what a module receives or returns, token by token, with tensors that it is handed:

        operands  --cast-->  in the compute dtype  --tensors-->  as the edit takes them  --prepared-->  kept until
        (fp32)               times `scale_of`                    (LoRA: rank padded)                    one changes

    Where a batch mixes adapters, the prepared tensors of several parts are stacked, and one edit serves all of them.
    """

    edits: ClassVar[Literal["input", "output"]] = "output"
    replaces: ClassVar[bool] = False  # whether its parameters, by their names, stand in for the module's own

    def __init__(self) -> None:
        super().__init__()
        self._prepared = Cached[tuple[Tensor, ...]]()

    def prepared(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """`tensors`, kept for all blocks until a parameter changes; made anew where they are differentiated."""
        if torch.compiler.is_compiling():  # a graph makes them in every pass
            return self.tensors(dtype)
        scales = tuple(map(self.scale_of, self.operands))  # which somebody may set
        return self._prepared.get([*self.parameters()], lambda: self.tensors(dtype), dtype, scales)

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What the edit computes with, in `dtype`: vectors (O,) and matrices (R, I); by default the operands.

        At experts, one for each expert: (E, O) and (E, R, I).
        """
        return tuple(self.cast(operand, dtype) for operand in self.operands)

    def edit_input(self, x: Tensor, *tensors: Tensor) -> Tensor:
        """What the module shall receive instead of x (…, I), if `edits` is "input".

        Matrices are for `core.linear`. In a padded batch of several adapters x is (B, T, I), and tensors are a row's
        each: vectors (B, 1, O), matrices (B, R, I). In a line it is a run's tokens (n, I), or several runs' with
        vectors (n, O), a token's each. At experts x is (C, I), every token once for each of its experts.
        """
        raise NotImplementedError

    def edit_output(self, x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        """What the module shall return instead of y (…, O), given that it received x (…, I), if `edits` is "output".

        At `attn` and `mlp`, x is what the whole sublayer received; with `.residual`, what its output is added to.
        """
        raise NotImplementedError

    def edit(self, values: Sequence[Tensor], tensors: Iterable[Any]) -> Tensor:
        """The last of `values` edited: (x,) if `edits` is "input", else (x, y)."""
        edit: Callable[..., Tensor] = self.edit_input if self.edits == "input" else self.edit_output
        return edit(*values, *tensors)

    def stack_key(self) -> Hashable | None:
        """Parts of one class and of equal keys differ in their tensors alone; None: this one acts by itself."""
        return ()

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The module's weight (O, I) and bias (O,), or the experts' weights (E, O, I), fp32, with this part inside."""
        raise NotImplementedError(f"{type(self).__name__} has no form as a weight")


class VirtualPart(Part):
    """A part that gives virtual tokens, which rows attend to beside their text."""

    takes_positions: bool = True  # the text's own positions begin behind them

    def virtual(self) -> Tensor:
        """At `embed`: virtual embeddings (P, D). At `memory`: keys and values (P, 2·L, H, width).

        At `memory.gated`: (P, K, D), what the attention of the last K layers is given.
        """
        raise NotImplementedError

    def gates(self) -> Tensor:
        """At `memory.gated`: what each of the last K layers multiplies its tokens' attention by, (K,)."""
        raise NotImplementedError


class WeightPart(Part):
    """A part that stands in for weights of the base, which may be on several devices: it is built where they are."""

    def weights(self) -> Mapping[str, Tensor]:
        """The tensors that take the place of the base's parameters, by name, in its precision.

        Of a parameter that is divided among processes, a tensor that is divided alike, in any precision: its values.
        """
        raise NotImplementedError

    def saved(self) -> Iterator[tuple[str, Tensor]]:
        """The weights as they are saved, whole, in the base's precision; all processes iterate, the first gets them."""
        return gathered(self.weights().items())


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass whose fields are hyper-parameters; `docs/add-a-method.md` walks through one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]  # in files and on the command line
    paper: ClassVar[str]
    lr: ClassVar[float]  # a learning rate to start from, at the width of `halka.models.rates`

    def roles(self) -> tuple[str, ...]:
        """The roles, or groups of roles, that it acts on; also paths of single linear layers."""
        ...

    def build(self, target: Target) -> Part | None:
        """The part for one target of those roles, fp32, or None to leave that target alone."""
        ...
