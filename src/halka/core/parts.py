"""A method builds parts for a base's targets; an adapter is the parts of one method on one base.

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
from halka.util.cached import Cached, Changes
from halka.util.divided import gathered, is_divided, part_like
from halka.util.errors import HalkaError


class Part(nn.Module):
    """What a method puts at one target: a `ModulePart`, a `VirtualPart` or a `WeightPart`. Parameters are fp32.

    operands  names of the parameters that it reads by `cast` alone
    """

    operands: tuple[str, ...] = ()
    casts: Mapping[str, Tensor] = {}  # within `core.casting`, the operands in the base's precision

    def scale_of(self, operand: str) -> float:
        """What an operand is multiplied by once it is cast."""
        return 1.0

    def cast(self, name: str, dtype: torch.dtype) -> Tensor:
        """A parameter in `dtype`, times its factor; within `core.casting`, what was cast for the whole step."""
        cast = self.casts.get(name)
        if cast is not None and cast.dtype == dtype:
            return cast
        cast, scale = self.get_parameter(name).to(dtype), self.scale_of(name)
        return cast if scale == 1 else cast * scale

    def tie_parameters(self, others: Mapping[str, Part]) -> None:
        """Called once, when all parts of the adapter are built, by their targets' paths: some share parameters."""


class ModulePart(Part):
    """A part that edits what a module receives or returns, token by token.

    It computes with its `tensors` alone, which are handed to it: where a batch mixes adapters, those of several parts
    are stacked and act in one go. A part that cannot be stacked returns None as its `stack_key`.
    """

    edits: ClassVar[Literal["input", "output"]] = "output"

    def __init__(self) -> None:
        super().__init__()
        self._packed = Cached[tuple[Tensor, ...]]()

    def packed(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """`tensors`, kept for all blocks until a parameter changes; made anew where they are differentiated."""
        if torch.compiler.is_compiling():  # a graph makes them in every pass
            return self.tensors(dtype)
        scales = tuple(map(self.scale_of, self.operands))  # which somebody may set
        return self._packed.get([*self.parameters()], lambda: self.tensors(dtype), dtype, scales)

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """What the edit computes with, in `dtype`: vectors (O,) and matrices (R, I).

        At experts, one for each expert: (E, O) and (E, R, I).
        """
        return ()

    def edit_input(self, x: Tensor, *tensors: Tensor) -> Tensor:
        """What the module shall receive instead of x (…, I), if `edits` is "input".

        Matrices are for `core.linear`. In a padded batch of several adapters x is (B, T, I), and tensors are a row's
        each: vectors (B, 1, O), matrices (B, R, I). In a packed one the part is given its own run's tokens (n, I). At
        experts x is (C, I), every token once for each of its experts.
        """
        raise NotImplementedError

    def edit_output(self, x: Tensor, y: Tensor, *tensors: Tensor) -> Tensor:
        """What the module shall return instead of y (…, O), given that it received x (…, I), if `edits` is "output".

        At `attn` and `mlp`, x is what the whole sublayer received; with `.residual`, what its output is added to.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The edit with this part's own tensors: of the input x, or of the output y."""
        values = (x,) if y is None else (x, y)
        return self.edit(values, self.tensors(values[-1].dtype))

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
    """A part that gives virtual tokens, which rows attend to beside their text.

    takes_positions   the text's own positions begin behind them
    """

    takes_positions: bool = True

    def virtual(self) -> Tensor:
        """At `embed`: virtual embeddings (P, D). At `memory`: keys and values (P, 2·L, H, width).

        At `memory.gated`: (P, K, D), what the attention of the last K layers is given.
        """
        raise NotImplementedError

    def gates(self) -> Tensor:
        """At `memory.gated`: what each of the last K layers multiplies its tokens' attention by, (K,)."""
        raise NotImplementedError


class WeightPart(Part):
    """A part that stands in for weights of the base."""

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
    lr: ClassVar[float]  # a learning rate to start from

    def roles(self) -> tuple[str, ...]:
        """The roles, or groups of roles, that it acts on; also paths of single linear layers."""
        ...

    def build(self, target: Target) -> Part | None:
        """The part for one target of those roles, fp32, or None to leave that target alone."""
        ...


class Adapter:
    """The parts that one method built for one base, by their targets' paths."""

    def __init__(self, method: Method, parts: Mapping[str, Part], targets: Mapping[str, Target]):
        self.method = method
        self.parts = dict(parts)
        self.targets = dict(targets)
        self.packed = Cached[bool]()  # by `core.casting.pack`
        self.labels: tuple[str, ...] = ()  # what its head tells apart, by place; the base's own names if empty

    def __repr__(self) -> str:
        return f"Adapter({self.method}, {self.count():,} trained parameters in {len(self.parts)} parts)"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for path, part in self.parts.items():
            for name, parameter in part.named_parameters():
                yield f"{path}.{name}", parameter

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    @property
    def divided(self) -> bool:
        """Whether each of the processes that train holds a part of it (`halka.util.divided`)."""
        return any(is_divided(parameter) for parameter in self.parameters())

    def count(self) -> int:
        """The number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def train(self, mode: bool = True) -> None:
        for part in self.parts.values():
            part.train(mode)

    def state_dict(self) -> dict[str, Tensor]:
        """Every part's tensors under `<target path>.<name>`, detached, sharing memory with the parts."""
        state = {}
        for path, part in self.parts.items():
            state.update(part.state_dict(prefix=f"{path}."))
        return state

    def load_state_dict(self, state: Mapping[str, Tensor], *, assign: bool = False) -> None:
        """Copy `state` in; with `assign`, hold its very tensors where they are on the parts' devices, else copies.

        Of whole tensors a part that is divided among processes takes what it holds.

        Raises HalkaError naming every key that is missing, unknown or of another shape, and with `assign` for tensors
        that are not fp32.
        """
        self._check_fits(state)
        before = self.parameters()
        if assign and (other := [key for key, tensor in state.items() if tensor.dtype != torch.float32]):
            raise HalkaError(f"the state holds {state[other[0]].dtype} in {other[0]}: parts hold fp32")
        for path, part in self.parts.items():
            values = {name: part_like(state[f"{path}.{name}"].detach(), own) for name, own in part.state_dict().items()}
            if assign:
                here = {name: values[name].to(own) for name, own in part.state_dict().items()}
                values = {name: tensor.clone() if tensor.is_inference() else tensor for name, tensor in here.items()}
            part.load_state_dict(values, assign=assign)
        Changes.happened([*before, *self.parameters()])

    def _check_fits(self, state: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        problems = [f"missing {key}" for key in own.keys() - state.keys()]
        problems += [f"unknown {key}" for key in state.keys() - own.keys()]
        problems += [
            f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
            for key in own.keys() & state.keys()
            if state[key].shape != own[key].shape
        ]
        if problems:
            shown = "; ".join(sorted(problems)[:5])
            raise HalkaError(
                f"the weights do not fit this adapter on this base: {shown} ({len(problems)} problems in all): they "
                "are another method's, or were made for another base"
            )
