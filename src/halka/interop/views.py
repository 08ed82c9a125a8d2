"""`view`: a base with one of its adapters as a transformers model, for Trainer, pipelines, TRL and torch.compile.

A view has the base's own class, so that other tools' checks pass, and shares its modules: a cast of one view, or a
move, is the base's. Every forward pass runs within `model.use(name)`. Its `parameters()` and its `state_dict` are the
adapter's alone.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from halka.core import AdaptedModel, Adapter
from halka.storage.save_load import save
from halka.util.cached import Changes
from halka.util.errors import HalkaError
from halka.util.mode import in_mode

ADAPTER = "adapter"  # the submodule that holds the adapter's parts, by their paths with "/" for "."
VALUES = "model.safetensors"  # what Trainer resumes from, by the view's own names
_eager: Any = torch.compiler.disable


def view(model: AdaptedModel, name: str | None) -> Any:
    """The base with adapter `name` (None: the bare base) as a transformers model of the base's own class.

    Views share the base, which does not change; each has its own train or eval mode, and its adapter's labels.
    The adapter acts in `forward` and `generate`: the submodules are the base's, and compute without it when called
    directly. Raises UnknownAdapterError for an unknown name.
    """
    return _class_of(type(model.base))(model, name)


class View(nn.Module):
    """The methods in which a view differs from its base class."""

    def __init__(self, model: AdaptedModel, name: str | None):
        nn.Module.__init__(self)
        own = {*self.__dict__, "forward"}  # the base's hooks, and what accelerate puts in its forward's place
        self.__dict__.update({key: value for key, value in model.base.__dict__.items() if key not in own})
        self._modules.update(model.base._modules)
        self._parameters.update(model.base._parameters)
        self._buffers.update(model.base._buffers)
        if ADAPTER in self._modules:
            raise HalkaError(
                f"{type(model.base).__name__} has a module {ADAPTER!r} itself, so a view cannot add its own"
            )
        self._model, self._name = model, name
        self._adapter = None if name is None else model.adapter(name)
        parts = {} if self._adapter is None else self._adapter.parts
        self._inside = False  # whether a forward pass is running
        self._labels = model.labels_of(name)
        if self._labels != model.labels:
            self.config = _config_with(self._labels, self.config)
        self.adapter = nn.ModuleDict({path.replace(".", "/"): part for path, part in parts.items()})
        self.training = False

    @torch.compiler.disable(recursive=False)  # compile the base's pass, not the switch of adapters
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward` with the adapter, also where TRL has replaced `forward`."""
        with Uncompiled(self._acting()):
            self._inside = True
            try:
                return nn.Module.__call__(self, *args, **kwargs)
            finally:
                self._inside = False

    @torch.compiler.disable(recursive=False)
    def _pass(self, *args: Any, **kwargs: Any) -> Any:
        with Uncompiled(self._acting()):
            if len(self._labels) < len(self._model.labels):
                forward = inspect.signature(type(self._model.base).forward)
                _, *positional = forward.bind_partial(self._model.base, *args).arguments.items()
                return self._narrowed(**dict(positional), **kwargs)
            return self._model.base(*args, **kwargs)

    def _narrowed(self, *, labels: Tensor | None = None, return_dict: bool | None = None, **kwargs: Any) -> Any:
        """A pass for a base whose head has more outputs than the adapter has labels: cuts the logits to the labels."""
        wide = self._model.base(return_dict=True, **kwargs)
        outputs = {**wide, "logits": wide.logits[..., : len(self._labels)]}
        if labels is not None:
            outputs["loss"] = F.cross_entropy(outputs["logits"].flatten(0, -2).float(), labels.flatten())
        narrow = type(wide)(**outputs)
        return narrow.to_tuple() if return_dict is False else narrow

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base's `generate`, within `use`."""
        with self._acting():
            return self._model.base.generate(*args, **kwargs)  # type: ignore[operator]

    def get_output_embeddings(self) -> Any:
        """The base's head. Raises HalkaError within a pass if the adapter acts on it, since TRL reads its weight."""
        targets = {} if self._adapter is None else self._adapter.targets
        head = self._model.base.get_output_embeddings()  # type: ignore[operator]
        if self._inside and any(target.module is head for target in targets.values()):
            raise HalkaError(
                f"adapter {self._name!r} acts on the head, which this tool bypasses: it reads the head's weight "
                "directly, as TRL's trainers do. Leave the head out of the adapter's targets, or use `halka.train`"
            )
        return head

    @property
    def generation_config(self) -> Any:
        return self._model.base.generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        self._model.base.generation_config = value

    def train(self, mode: bool = True) -> View:
        """Set the view's own mode; the base and the adapter take it while the view computes."""
        self.training = mode
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> View:
        """What `.to()`, `.half()` and their like do: the base, which all views share, takes precision and device.

        The adapter takes the device alone: its parameters stay fp32, whatever trains or evaluates the view.
        """
        base: Any = self._model.base
        base._apply(fn, recurse)
        self._parameters.update(base._parameters)
        self._buffers.update(base._buffers)
        self.adapter._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)
        return self

    def enable_input_require_grads(self) -> None:
        """Do nothing: a view's checkpoints are not re-entrant, and need no gradients of their inputs."""

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """Checkpoint as the base does; recomputation in backward uses the adapters of the forward pass.

        Raises HalkaError for re-entrant checkpoints.
        """
        settings = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if settings["use_reentrant"]:
            raise HalkaError(
                "re-entrant checkpoints cannot recompute a layer with its forward pass's adapter: use_reentrant=False"
            )
        settings["context_fn"] = functools.partial(_checkpoint_contexts, self._model)
        super().activation_checkpointing_enable(settings, **options)  # type: ignore[misc]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """Raises HalkaError: the base would keep its head, and the view would have another."""
        raise HalkaError("a view shares its base's embeddings: resize the base's, and then `halka.adapt` it again")

    @property
    def device(self) -> torch.device:
        return self._model.base.device  # pyright: ignore[reportReturnType]

    @property
    def dtype(self) -> torch.dtype:
        return self._model.base.dtype  # pyright: ignore[reportReturnType]

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The adapter's parameters alone, so that who writes into all of them leaves the base as it is.

        `named_parameters` has the base's too, which transformers counts.
        """
        own = [*self.adapter.parameters(recurse)]
        Changes.happened(own)  # by whoever takes them: TRL's sync of a reference writes into their `.data`
        return iter(own)

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The adapter's values alone, under their names among the view's parameters; the base's, if there is none.

        TRL keeps what a reference computed by the hash of these.
        """
        if self._adapter is None:
            return self._model.base.state_dict(*args, prefix=prefix, **kwargs)
        return self.adapter.state_dict(*args, prefix=f"{prefix}{ADAPTER}.", **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Copy the adapter's values in; always strict, and raises as `Adapter.load_state_dict` does."""
        state = {key.removeprefix(f"{ADAPTER}.").replace("/", "."): value for key, value in state_dict.items()}
        with self._model.lock:
            self._own().load_state_dict(state)
        return nn.modules.module._IncompatibleKeys([], [])

    def save_pretrained(
        self, save_directory: str | Path, is_main_process: bool = True, state_dict: Any = None, **options: Any
    ) -> None:
        """Write the adapter folder's files, as `halka.save` does, into the folder; `halka.load` reads them.

        `model.safetensors` has the same values under the view's names, for Trainer to resume from. Options are for
        whole models, and ignored. Raises HalkaError for a view of the bare base, and of an adapter that is not in
        the model any more.
        """
        self._own()
        if not is_main_process:
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with self._model.lock, TemporaryDirectory(prefix=".saving-", dir=folder) as beside:
            self._own()
            written = save(self._model, self._name or "", Path(beside) / ADAPTER)
            values = {key: value.clone() for key, value in self.state_dict().items()}
            save_file(values, written / VALUES, {"format": "pt"})
            for file in written.iterdir():
                os.replace(file, folder / file.name)

    def _own(self) -> Adapter:
        if self._adapter is None:
            raise HalkaError("this is a view of the bare base, which has no adapter to save or load: view an adapter")
        self._check_here()
        return self._adapter

    def _check_here(self) -> None:
        """Raises HalkaError where the model has the adapter no more."""
        if self._name is not None and self._model.adapters.get(self._name) is not self._adapter:
            raise HalkaError(
                f"this view's adapter {self._name!r} was removed, or a pool evicted it: make a new view. Its "
                "values are in this one's `state_dict()`"
            )

    def _is_frozen(self) -> bool:
        """Whether the adapter has parameters, and none of them trains."""
        wanted = [parameter.requires_grad for parameter in self.adapter.parameters()]
        return bool(wanted) and not any(wanted)

    @contextmanager
    def _acting(self) -> Iterator[None]:
        """Let the base compute with this adapter, in the view's mode, within the block."""
        parts = self.adapter.values()
        with self._model.use(self._name), in_mode(self.training, self._model.base, *parts):
            self._check_here()
            if self.training and torch.is_grad_enabled() and self._is_frozen():
                raise HalkaError(
                    f"something froze adapter {self._name!r}, as peft's get_peft_model does: leave peft_config out"
                )
            yield


class Uncompiled(AbstractContextManager[None]):
    """A context manager whose entry and exit stay out of compiled code."""

    def __init__(self, block: AbstractContextManager[None]):
        self._block = block

    @_eager
    def __enter__(self) -> None:
        self._block.__enter__()

    @_eager
    def __exit__(self, *error: Any) -> bool | None:
        return self._block.__exit__(*error)


@functools.cache
def _class_of(base: type[nn.Module]) -> type[View]:
    """The class of a base's views: a subclass of the base's class with its name and its signature of `forward`."""

    @functools.wraps(base.forward)
    def forward(self: View, *args: Any, **kwargs: Any) -> Any:
        return self._pass(*args, **kwargs)

    return type(
        base.__name__, (View, base), {"forward": forward, "__module__": base.__module__, "__doc__": base.__doc__}
    )


def _config_with(labels: Sequence[str], config: Any) -> Any:
    """The configuration with an adapter's labels; every other attribute is shared with the base's."""
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}
    own = type(config)

    def to_dict(self: Any) -> dict[str, Any]:
        return {**own.to_dict(self), **named}

    changed = {"__module__": own.__module__, "to_dict": to_dict, **_constants(named)}
    labelled = object.__new__(type(own.__name__, (own,), changed))
    labelled.__dict__ = config.__dict__
    return labelled


def _constants(values: Mapping[str, Any]) -> dict[str, property]:
    """Class attributes that override those of the instances."""
    return {key: property(lambda _, value=value: value) for key, value in values.items()}


def _checkpoint_contexts(model: AdaptedModel) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """The context of a checkpointed layer: none in the forward pass; in backward the adapters of the forward pass."""
    acting = [model.adapters[name] for name in {*model.active} if name is not None]
    training = [part for adapter in acting for part in adapter.parts.values() if part.training]
    return nullcontext(), _recomputing(model.as_now(), model.base, *training)


@contextmanager
def _recomputing(as_then: AbstractContextManager[None], *training: nn.Module) -> Iterator[None]:
    with as_then, in_mode(True, *training):
        yield
