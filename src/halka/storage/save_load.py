"""The adapter folder: a format's two files and a Card, `halka.json`. Saved whole or not at all, loaded strictly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from halka.core import AdaptedModel, Adapter, described, form_of
from halka.models.fetching.hub import adapter_folder, adapter_name
from halka.models.fingerprint import own_fingerprint
from halka.models.heads import fitted_head, has_head, narrowed
from halka.models.kinds import kind_of
from halka.storage import tensors
from halka.storage.card import CARD, Card, check_base, checked_beside, digests, read_card, template_of
from halka.storage.formats import Files, Folder, format_named, format_of
from halka.storage.formats.adapterhub.heads import named_labels
from halka.storage.formats.peft import FILES
from halka.util.errors import HalkaError
from halka.util.files import new_folder, soon_needed

WEIGHTS = FILES.weights  # of what `save` writes, if it is not told otherwise


def save(
    model: AdaptedModel,
    name: str,
    folder: str | Path,
    *,
    task: str = "",
    training: Mapping[str, Any] | None = None,
    measurements: Mapping[str, Any] | None = None,
    format: str = "peft",
) -> Path:
    """Write adapter `name` to `folder`, which a crash leaves as it was or as it shall be. Returns the folder.

    `format` is one that `storage.formats` has. Task, training and measurements go into the Card as they are given. A
    README.md that is there stays.
    Raises ValueError for weights that are not finite, for a method that the format lacks, and for a folder that holds
    something else.
    """
    adapter, folder, form = narrowed(model, name), Path(folder), format_named(format)
    own = (*form.FILES.names(), CARD, "README.md")
    if folder.exists() and not folder.is_dir():
        raise HalkaError(f"{folder} is a file: choose another folder")
    if other := sorted(path.name for path in folder.glob("*") if path.name not in own):
        raise HalkaError(f"{folder} exists and holds {other[0]}, which is no part of an adapter: choose another folder")
    readme = folder / "README.md"
    base: Any = model.base
    with model.own_weights(), torch.no_grad():
        base_name = getattr(base.config, "_name_or_path", "") or ""
        written = form.write(adapter, model.targets, base_name)
    head = written.head or Folder({}, {})
    tensors.check_finite(name, {**written.tensors, **head.tensors})
    identity = {"name": base_name, "fingerprint": own_fingerprint(model), "quantize": form_of(model.base)}
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
        kind=kind_of(base),
        labels=adapter.labels,
        versions={package: version(package) for package in ("halka", "torch", "transformers")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with new_folder(folder) as beside:
        _write(written, form.FILES, beside)
        if written.head is not None and form.FILES.head is not None:
            _write(written.head, form.FILES.head, beside)
        card = replace(card, files=digests(beside))
        (beside / CARD).write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")
        if readme.exists():
            shutil.copyfile(readme, beside / readme.name)
    return folder


def load(
    model: AdaptedModel,
    folder: str | Path,
    *,
    name: str | None = None,
    allow_other_base: bool = False,
    allow_other_template: bool = False,
    allow_pickle: bool = False,
    head: bool = True,
) -> Adapter:
    """Read an adapter folder, of any format in `storage.formats`, into `model` under `name` (default: the folder's).

    A text that is no path here may be a name on the Hugging Face hub: `org/adapter`, or `org/adapter@revision`.
    head: with the head that was saved beside it, where the format has such. A pickle is read by torch's loader for
    weights alone, and only where it is allowed.
    The file is mapped into memory, not copied: replace it by renaming, as `save` does, and never write into it.
    Warns where the base is packed (`load_base(quantize=…)`) in another form than the adapter was trained on.
    Raises ValueError, and leaves the model as it was, for: a folder without an adapter, a pickle that is not allowed,
    another base or chat template than the Card names, files that are not those that the Card was written for, unknown
    or missing tensors, shapes that do not fit, values that are not finite.
    """
    name = adapter_name(folder) if name is None else name
    folder = adapter_folder(folder, allow_pickle=allow_pickle)
    config = read_config(folder, allow_pickle=allow_pickle)
    card = read_card(folder)
    form = format_of(folder)
    weights = weights_of(folder, form.FILES, allow_pickle=allow_pickle)
    soon_needed(weights)
    with checked_beside(card, folder) as check:
        if card is not None:
            check_base(card, model, folder, allow_other_base, allow_other_template)
        read = tensors.read_tensors(weights)
        beside = _read_head(folder, form.FILES.head, allow_pickle=allow_pickle) if head else None
        try:
            with model.own_weights():
                method, state = form.read(Folder(config, read, beside), model.targets)
            labels = () if card is None else tuple(card.labels)
            if card is None and beside is not None and has_head(model, state):
                labels = named_labels(beside.config)
            state = fitted_head(model, labels, state)
            with model.lock:  # nobody uses it before its files are known to be the Card's
                adapter = model.add(name, method, state=state, labels=labels)
                try:
                    check()
                except BaseException:
                    model.remove(name)
                    raise
        except ValueError as error:
            raise HalkaError(f"{folder}: {error}") from None
    return adapter


def _write(written: Folder, files: Files, folder: Path) -> None:
    (folder / files.config).write_text(json.dumps(written.config, indent=2) + "\n", encoding="utf-8")
    tensors.write_tensors({key: tensor.cpu() for key, tensor in written.tensors.items()}, folder / files.weights)


def read_config(folder: Path, *, allow_pickle: bool = False) -> dict[str, Any]:
    """The adapter's configuration. Raises ValueError if the folder holds no adapter that can be loaded safely."""
    files = format_of(folder).FILES
    if not (folder / files.config).is_file():
        raise HalkaError(f"{folder} holds no {files.config}: it is not an adapter folder")
    weights_of(folder, files, allow_pickle=allow_pickle)
    return read_json(folder / files.config)


def weights_of(folder: Path, files: Files, *, allow_pickle: bool = False) -> Path:
    """The file that holds the weights; a pickle only if that is allowed. Raises ValueError if there is none."""
    if (folder / files.weights).is_file():
        return folder / files.weights
    if allow_pickle and (folder / files.pickle).is_file():
        return folder / files.pickle
    if pickles := ", ".join(path.name for path in folder.glob("*.bin")):
        raise HalkaError(
            f"{folder} holds its weights as a pickle ({pickles}), which can run code: where you trust it, pass "
            "allow_pickle (--allow-pickle: torch's loader for weights alone reads it), or have it written anew by "
            "`halka adapters convert --allow-pickle`"
        )
    raise HalkaError(f"{folder} holds no {files.weights}: the adapter is incomplete")


def _read_head(folder: Path, files: Files | None, *, allow_pickle: bool) -> Folder | None:
    """The head that was saved beside the adapter, if there is one."""
    if files is None or not (folder / files.config).is_file():
        return None
    weights = weights_of(folder, files, allow_pickle=allow_pickle)
    return Folder(read_json(folder / files.config), tensors.read_tensors(weights))


def read_json(path: Path) -> dict[str, Any]:
    """A configuration out of its file. Raises ValueError for what is no JSON object."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise HalkaError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise HalkaError(f"{path} is not an adapter's configuration: it holds no JSON object")
    return config


def read_tensors(folder: Path, *, allow_pickle: bool = False) -> dict[str, torch.Tensor]:
    """The adapter's tensors by the file's names. Raises ValueError as `tensors.read_tensors` and `weights_of` do."""
    return tensors.read_tensors(weights_of(folder, format_of(folder).FILES, allow_pickle=allow_pickle))


def size_of(folder: Path) -> int:
    """The bytes that the adapter's values take in memory, in fp32. Raises ValueError for a damaged file."""
    return tensors.size_of(folder / format_of(folder).FILES.weights)
