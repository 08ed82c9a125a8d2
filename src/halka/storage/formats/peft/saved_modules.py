"""Convert what peft saves beside a method: modules trained whole (`modules_to_save`) and single tokens' rows.

Their tensors have the base's own names, or `<module>.token_adapter.trainable_tokens_delta`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from halka.core import MODULE, Method, Part, Target
from halka.methods import Modules, Tokens
from halka.storage.formats.format import base_of, json_list, json_object
from halka.storage.formats.peft.selection import listed_names, modules_of
from halka.util.errors import HalkaError

ROLES: tuple[Literal["embedding"], Literal["head"]] = ("embedding", "head")
ROWS = "token_adapter.trainable_tokens_delta"
TOKENS_BASE = ".token_adapter.base_layer."
BASE = ".base_layer."  # of an embedding or head at which a method acts: the base's own weights again
UNREAD = ".lora_velora_embed"  # of use in a backward pass alone
ROUNDED, SMALLEST = 2**-8, 2**-24  # by what the same weights differ in bf16, fp16 and fp32: by shares, and near zero
BLOCK = 2**22  # numbers that are compared at once
COPY = re.compile(r"\.(modules_to_save(\.default)?|original_module)\.")


METHODS = ("modules", "tokens")


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(
    methods: Sequence[Method], parts: Mapping[str, Part], targets: tuple[Target, ...], *, tokens: bool
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Return options and tensors by the base's names; None if peft cannot hold them (tokens' rows only if `tokens`)."""
    base = base_of(targets)
    names: list[str] = []
    indices: dict[str, list[int]] = {}
    tensors: dict[str, Tensor] = {}
    for method in methods:
        if isinstance(method, Modules):
            for path in (_path(target, targets) for target in method.targets):
                names.append(_name(path, base))
                tensors.update({f"{path}.{key}": tensor for key, tensor in parts[path].state_dict().items()})
        else:
            rows = write_rows(method, parts, targets)
            if rows is None or not tokens:
                return None
            assert isinstance(method, Tokens)
            indices |= {path.rpartition(".")[2]: list(method.tokens) for path in rows}
            tensors |= {f"{path}.{ROWS}": tensor for path, tensor in rows.items()}
    config = {"modules_to_save": names or None}
    return ({**config, "trainable_token_indices": indices} if indices else config), tensors


def write_rows(method: Method, parts: Mapping[str, Part], targets: tuple[Target, ...]) -> dict[str, Tensor] | None:
    """Return a `Tokens`' rows by module path, once for tied modules; None if peft would tie them and Halka does not."""
    assert isinstance(method, Tokens)
    roles = [*method.targets]
    if _tied(targets):
        if {*roles} != {"embedding", "head"} or _tied_further(targets):
            return None
        roles = ["embedding"]
    return {path: parts[path].get_parameter("rows") for path in (_path(role, targets) for role in roles)}


def by_path(path: str) -> str:
    """A module's path as a target, which says that it is one where it is a role's name, too, as ModernBERT's `head`."""
    return f"{MODULE}{path}" if path in ROLES else path


def _path(target: str, targets: tuple[Target, ...]) -> str:
    """Return the path of a module, which `target` names by path or by role (`head`, `embedding`)."""
    return next((place.name for place in targets if place.role == target), target.removeprefix(MODULE))


def _name(path: str, base: nn.Module) -> str:
    """Return the shortest ending of a module's path that no other module's path has."""
    steps = path.split(".")
    names = [name for name, module in modules_of(base).items() if _trains(module)]
    for count in range(1, len(steps)):
        ending = ".".join(steps[-count:])
        if [name for name in names if name.endswith(ending)] == [path]:
            return ending
    return path


def _tied(targets: tuple[Target, ...]) -> bool:
    """Return whether head and embedding share their weight."""
    places = [target for target in targets if target.role in ("embedding", "head") and target.d_in]
    weights = [target.module.get_parameter("weight") for target in places]
    return len(weights) == 2 and weights[0] is weights[1]


def _tied_further(targets: tuple[Target, ...]) -> bool:
    """Return whether further modules share the embedding's weight, as T5's encoder and decoder do."""
    names = {target.name for target in targets if target.role in ("embedding", "head")}
    own = next(target.module.get_parameter("weight") for target in targets if target.role == "embedding")
    modules = base_of(targets).named_modules()
    return any(module._parameters.get("weight") is own and name not in names for name, module in modules)


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def without_copies(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...], *, layers: bool
) -> dict[str, Tensor]:
    """The tensors without what peft saves a second time: modules trained whole under further names, and where the
    vocabulary was resized the base's own rows, of which single ones were trained; with `layers` also the base's own
    embedding or head at which the method acts.

    Raises HalkaError where these are not this base's.
    """
    kept: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key.endswith(UNREAD):
            continue
        plain = COPY.sub(".", key)
        if plain == key or (plain not in tensors and ".modules_to_save." in key):
            kept[plain] = tensor
    of_tokens = [key for key in kept if TOKENS_BASE in key or (layers and BASE in key)]
    parameters = dict(base_of(targets).named_parameters(remove_duplicate=False)) if of_tokens else {}
    for key in of_tokens:
        path, _, name = key.partition(TOKENS_BASE if TOKENS_BASE in key else BASE)
        own = parameters.get(f"{path}.{name}")
        if own is None:
            raise HalkaError(f"the adapter acts on {path}, which this base does not have")
        if others := sorted({*other_rows(kept.pop(key), own)} - {*_all_tokens(config)}):
            raise HalkaError(
                f"the adapter holds other rows of {path} than this base, such as {others[0]}: it was made for another "
                "base, or for one whose new tokens began as others; copy their rows into the base before halka.adapt"
            )
    return kept


def other_rows(saved: Tensor, own: Tensor) -> list[int]:
    """The rows in which a saved weight is another than the base's, beyond what a precision rounds.

    Raises HalkaError for another shape.
    """
    if _same(saved, own):
        return []
    rows, alike = max(1, BLOCK // own[0].numel()), list[Tensor]()
    for start in range(0, len(own), rows):
        block = slice(start, start + rows)
        mine, others = saved[block].float(), own[block].detach().to(saved.device).float()
        alike.append(torch.isclose(mine, others, rtol=ROUNDED, atol=SMALLEST).flatten(1).all(1))
    return [int(row) for row in (~torch.cat(alike)).nonzero()[:, 0]]


def _all_tokens(config: Mapping[str, Any]) -> Iterator[int]:
    """The ids of the tokens that are trained somewhere."""
    indices = config.get("trainable_token_indices")
    of_one = json_list(indices, int)
    for ids in [of_one] if of_one is not None else (json_object(indices) or {}).values():
        yield from json_list(ids, int) or ()


def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> tuple[list[Method], dict[str, Tensor]]:
    """Return the methods that tensors with the base's own names belong to, and their state.

    Raises HalkaError for names that the base does not have, and for incomplete modules.
    """
    ending = f".{ROWS}"
    rows = {key.removesuffix(ending): tensor for key, tensor in tensors.items() if key.endswith(ending)}
    methods, state = read_rows(config.get("trainable_token_indices"), rows, targets)
    whole = {key: tensor for key, tensor in tensors.items() if not key.endswith(ending)}
    paths, values = _read_whole(config.get("modules_to_save") or [], whole, base_of(targets))
    if paths:
        roles = {target.name: target.role for target in targets if target.role in ("head", "embedding")}
        methods.append(Modules(tuple(roles.get(path) or by_path(path) for path in paths)))
    return methods, {**state, **values}


def read_rows(
    indices: Any, rows: Mapping[str, Tensor], targets: tuple[Target, ...]
) -> tuple[list[Method], dict[str, Tensor]]:
    """Return a `Tokens` per module with rows, and their state; `indices` are ids of one module, or ids by module."""
    if indices is None and not rows:
        return [], {}
    by_name = json_object(indices) if json_list(indices, object) is None else {_path("embedding", targets): indices}
    if not by_name:
        raise HalkaError(f"adapter_config.json: the trained tokens are {indices!r}, where ids are expected")
    tied = _tied(targets)
    if _tied_further(targets):
        raise HalkaError("the adapter trains single tokens, and this base ties more than its embedding and its head")
    methods: list[Method] = []
    state: dict[str, Tensor] = {}
    left = dict(rows)
    embedding, head = _path("embedding", targets), _path("head", targets)
    if tied and {embedding, head} <= left.keys() and left[embedding].equal(left[head]):
        left.pop(head)  # the same rows again
    for name, value in by_name.items():
        role: Literal["embedding", "head"] | None = next(
            (role for role in ROLES if f".{_path(role, targets)}".endswith(f".{name}")), None
        )
        if role is None:
            raise HalkaError(f"the adapter trains tokens at {name}, which is neither embedding nor head of this base")
        ids = json_list(value, int)
        if ids is None:
            raise HalkaError(f"adapter_config.json: the trained tokens of {name} are {value!r}, where ids are expected")
        if tied and role == "head" and embedding in rows:
            continue  # it shares the embedding's rows
        path = _path(role, targets)
        if path not in left:
            raise HalkaError(f"the weights lack the trained tokens' rows of {path}: the file is incomplete")
        methods.append(Tokens(tuple(ids), ROLES if tied and role == "embedding" else (role,)))
        state[f"{path}.rows"] = left.pop(path)
    if left:
        path = next(iter(left))
        more = "; it is tied, so that it shares the embedding's" if tied and path == head else ""
        raise HalkaError(f"the weights hold tokens' rows of {path}, which the configuration does not name{more}")
    return methods, state


def _read_whole(value: object, tensors: Mapping[str, Tensor], base: nn.Module) -> tuple[list[str], dict[str, Tensor]]:
    """Return the modules' paths and their state, without those equal to the base's that `value` does not name."""
    names = listed_names("modules_to_save", value)
    own = dict(base.named_parameters(remove_duplicate=False))
    if unknown := sorted(tensors.keys() - own.keys()):
        raise HalkaError(
            f"{len(unknown)} tensors are neither of this method nor of this base: {', '.join(unknown[:3])} …"
        )
    asked = _outermost(
        [name for name, module in modules_of(base).items() if name.endswith(tuple(names)) and _trains(module)]
        if names
        else []
    )
    paths = list(asked)
    for key, tensor in tensors.items():
        path = key.rpartition(".")[0]
        if not any(f"{path}.".startswith(f"{other}.") for other in paths) and not _same(tensor, own[key]):
            paths.append(path)
    state: dict[str, Tensor] = {}
    for path in paths:
        for key, _ in base.get_submodule(path).named_parameters(remove_duplicate=False):
            full = f"{path}.{key}"
            if full in tensors:
                state[full] = tensors[full]
            elif path in asked:
                raise HalkaError(f"the weights lack {full}, which modules_to_save names: the file is incomplete")
            else:
                state[full] = own[full].detach().float()
    return paths, state


def _outermost(names: list[str]) -> list[str]:
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _trains(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _same(saved: Tensor, own: Tensor) -> bool:
    _check_shape(saved, own)
    return saved.to(own.device, own.dtype).equal(own)


def _check_shape(saved: Tensor, own: Tensor) -> None:
    if saved.shape != own.shape:
        raise HalkaError(
            f"the weights hold a module of the shape {tuple(saved.shape)}, where this base has {tuple(own.shape)}: if "
            "its vocabulary was resized, call base.resize_token_embeddings and then halka.adapt again"
        )
