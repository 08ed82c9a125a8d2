"""`save` and `load`: write a model's adapter to a folder, whole or not at all, and read it back strictly."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch

from halka.core import AdaptedModel, Adapter, quantization_of
from halka.methods import described
from halka.models.base_names import at_revision, base_name, other_on_hub
from halka.models.fingerprint import own_fingerprint
from halka.models.heads import fitted_head, has_head, narrowed
from halka.models.kinds import kind_of
from halka.storage import tensors
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.card import CARD, Card, check_base, template_of
from halka.storage.formats import Contents, FileNames, Format, format_named
from halka.util.divided import checked_by_first, first_process
from halka.util.errors import HalkaError
from halka.util.files import contents, new_folder
from halka.util.mapped_pages import read_ahead
from halka.util.tensor_file import fill_file

README = "README.md"


class Allowed(TypedDict, total=False):
    """Options of `load` that allow what it refuses otherwise."""

    allow_other_base: bool
    allow_other_template: bool
    allow_pickle: bool


def check_adapter_folder(folder: Path, format: str = "peft") -> None:
    """Raises HalkaError for a file, and for a folder that holds something else than an adapter in that format."""
    own = (*format_named(format).FILES.names(), CARD, README)
    if folder.exists() and not folder.is_dir():
        raise HalkaError(f"{folder} is a file: choose another folder")
    if other := [name for name in contents(folder) if name not in own]:
        raise HalkaError(f"{folder} exists and holds {other[0]}, which is no part of an adapter: choose another folder")


def save(
    model: AdaptedModel,
    name: str,
    folder: str | Path,
    *,
    task: str = "",
    training: Mapping[str, Any] | None = None,
    measurements: Mapping[str, Any] | None = None,
    format: Literal["peft", "adapterhub"] = "peft",
) -> Path:
    """Write adapter `name` to `folder` and return the folder. A crash leaves the older adapter, or the whole new one.

    `task`, `training` and `measurements` go into the Card unchanged. A README.md in the folder stays. Where processes
    hold parts of the adapter, all call this together and the first one writes.
    Raises UnknownAdapterError for a name that the model does not have; HalkaError for weights that are not finite, a
    method that the format cannot hold, measurements that are no JSON, and a folder that holds something else.
    """
    folder, written_as = Path(folder).expanduser(), format_named(format)
    _check_json(training=training, measurements=measurements)
    divided = model.adapter(name).divided
    if divided and not first_process():
        help_save(model, name, format)
        return folder
    checked_by_first(lambda: check_adapter_folder(folder, format), together=divided)
    named = base_name(model.base)
    adapter, contents = _gathered(model, name, written_as, named)
    identity = {"name": named, "fingerprint": own_fingerprint(model), "quantize": quantization_of(model.base)}
    if adapter.labels and not has_head(model, adapter.state_dict()):
        identity["head"] = own_fingerprint(model, head=True)["weights"]
    card = Card(
        base=identity,
        method=described(adapter.method),
        parameters=adapter.count(),
        chat_template=template_of(model),
        task=task,
        training=training or {},
        measurements=measurements or {},
        kind=kind_of(model.base),
        labels=adapter.labels,
        versions={package: version(package) for package in ("halka", "torch", "transformers")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    checked_by_first(lambda: _write_folder(folder, name, contents, written_as.FILES, card), together=divided)
    return folder


def _check_json(**for_card: Mapping[str, Any] | None) -> None:
    """Raises HalkaError, which names the key, for a value that is no JSON."""
    for where, values in for_card.items():
        for key, value in (values or {}).items():
            try:
                json.dumps({key: value})
            except (TypeError, ValueError) as error:
                raise HalkaError(f"{where}: {key!r} is no JSON ({error}): give numbers and texts") from None


def is_as_saved(model: AdaptedModel, name: str, folder: AdapterFolder) -> bool:
    """Whether a folder in peft's format has the configuration and tensors that `save` would write of adapter `name`.

    The base may have another name there. Raises UnknownAdapterError for a name that the model does not have;
    DamagedFolderError as `AdapterFolder.read` does.
    """
    if folder.format is not format_named("peft"):
        return False
    there = folder.read()
    named = at_revision(str(there.config.get("base_model_name_or_path", "")), there.config.get("revision"))
    own = _gathered(model, name, folder.format, named)[1]
    return (
        json.loads(json.dumps(own.config)) == there.config
        and own.head is there.head is None
        and own.tensors.keys() == there.tensors.keys()
        and all(torch.equal(tensor.cpu(), there.tensors[key]) for key, tensor in own.tensors.items())
    )


def help_save(model: AdaptedModel, name: str, format: Literal["peft", "adapterhub"] = "peft") -> None:
    """What processes without a folder call while the first one calls `save`: gathers what they hold of the adapter.

    Raises UnknownAdapterError for a name that the model does not have, and HalkaError where the first one refuses.
    """
    if model.adapter(name).divided:
        checked_by_first(lambda: None)
        _gathered(model, name, format_named(format), "")
        checked_by_first(lambda: None)


def _gathered(model: AdaptedModel, name: str, written_as: Format, base_name: str) -> tuple[Adapter, Contents]:
    """The adapter as it is saved and what its files hold; of one in parts the first process gets all of it."""
    with model.own_weights(computing=False), torch.no_grad():
        adapter = narrowed(model, name)
        return adapter, written_as.write(adapter, model.targets, base_name)


def load(
    model: AdaptedModel,
    source: str | Path | AdapterFolder,
    *,
    name: str | None = None,
    allow_other_base: bool = False,
    allow_other_template: bool = False,
    allow_pickle: bool = False,
    head: bool = True,
) -> Adapter:
    """Add the adapter of a folder to `model` under `name` (default: the folder's name, or its run's).

    source                the path of an adapter's folder, of any known format, or of a run's folder; a name on the
                          Hugging Face hub, `org/adapter[@revision]`; an AdapterFolder, opened with the last two options
    allow_other_base      accept a base of the same shape with other weights
    allow_other_template  accept a tokenizer with another chat template
    allow_pickle          read weights from a pickle, by `torch.load` with `weights_only`
    head                  False leaves out a head that was saved beside the adapter

    The file is mapped into memory, not copied: replace it by a rename, as `save` does, and never write into it.
    Warns where the base is quantised (`load_base(quantize=…)`) in another way than the one it was trained on, and where
    a folder without a Card, as peft writes them, names another base: of that it has the name alone.
    Raises WrongBaseError for another base or chat template than the Card names, and for modules that the base lacks;
    DamagedFolderError for a folder without an adapter, a pickle that is not allowed, files that do not match the Card,
    and values that are not finite; HalkaError for options that Halka does not support, and tensors that do not fit.
    After an error the model is unchanged.
    """
    folder = AdapterFolder.open(source, allow_pickle=allow_pickle, head=head)
    name, card = folder.name if name is None else name, folder.card
    read_ahead(folder.weights)
    with folder.checking() as check:
        if card is not None:
            check_base(card, model, folder.path, allow_other_base, allow_other_template)
        elif not allow_other_base and (other := other_on_hub(folder.base_name, model.base)) is not None:
            warnings.warn(f"{folder} names {folder.base_name} as its base, and this is {other}", stacklevel=2)
        contents = folder.read()
        try:
            with model.own_weights(computing=False):
                method, state = folder.format.read(contents, model.targets)
            labels = folder.named_labels if card is not None or has_head(model, state) else ()
            state = fitted_head(model, labels, state)
            with model.lock:  # held until its files are checked, so that nobody uses it before
                adapter = model.add(name, method, state=state, labels=labels)
                try:
                    check()
                except BaseException:
                    model.remove(name)
                    raise
        except HalkaError as error:
            raise type(error)(f"{folder}: {error}") from None
    return adapter


def _write_folder(folder: Path, name: str, contents: Contents, files: FileNames, card: Card) -> None:
    """Write the adapter's folder. Raises HalkaError for weights that are not finite."""
    head = contents.head or Contents({}, {})
    tensors.check_finite(name, {**contents.tensors, **head.tensors})
    with new_folder(folder) as beside:
        _write(contents, files, beside)
        if contents.head is not None and files.head is not None:
            _write(contents.head, files.head, beside)
        card = replace(card, files=AdapterFolder.open(beside).digests)
        (beside / CARD).write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")
        if (folder / README).exists():
            shutil.copyfile(folder / README, beside / README)


def _write(contents: Contents, files: FileNames, folder: Path) -> None:
    (folder / files.config).write_text(json.dumps(contents.config, indent=2) + "\n", encoding="utf-8")
    fill_file(folder / files.weights, contents.tensors, {"format": "pt"})
