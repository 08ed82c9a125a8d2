"""The adapter folder: a format's two files and a Card, `halka.json`. Saved whole or not at all, loaded strictly."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from halka import tensors
from halka.core import AdaptedModel, Adapter, described, form_of
from halka.data.tokens import chat_template_fingerprint
from halka.files import new_folder, soon_needed
from halka.formats import Files, Folder, format_named, format_of
from halka.formats.adapterhub.heads import named_labels
from halka.formats.peft import FILES
from halka.models.fingerprint import own_fingerprint
from halka.models.heads import fitted_head, has_head, narrowed
from halka.models.hub import adapter_folder, adapter_name
from halka.models.kinds import kind_of

WEIGHTS = FILES.weights  # of what `save` writes, if it is not told otherwise
CARD = "halka.json"
LARGE = 1 << 24  # bytes hashed at a time: in between a thread waits for its turn in Python


@dataclass(frozen=True)
class Card:
    """What an adapter folder says of itself."""

    # name, fingerprint, the form that it was packed in (`quantize`), or None; `head` where the adapter uses the base's
    base: Mapping[str, Any]
    method: Mapping[str, Any]  # name and fields
    parameters: int
    chat_template: str
    task: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    measurements: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    kind: str = "causal-lm"  # of the base, as `load_base` takes it
    labels: Sequence[str] = ()  # what the adapter's head tells apart, by place
    files: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of those beside it

    def __post_init__(self) -> None:
        for each in fields(self):
            kinds = {"str": str, "int": int, "Sequence[str]": list | tuple}
            kind = kinds.get(str(each.type), Mapping)
            if not isinstance(getattr(self, each.name), kind):
                raise TypeError(f"{each.name} is {getattr(self, each.name)!r}")


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

    `format` is one that `halka.formats` has. Task, training and measurements go into the Card as they are given. A
    README.md that is there stays.
    Raises ValueError for weights that are not finite, for a method that the format lacks, and for a folder that holds
    something else.
    """
    adapter, folder, form = narrowed(model, name), Path(folder), format_named(format)
    own = (*_names(form.FILES), CARD, "README.md")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose another folder")
    if other := sorted(path.name for path in folder.glob("*") if path.name not in own):
        raise ValueError(f"{folder} exists and holds {other[0]}, which is no part of an adapter: choose another folder")
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
        card = replace(card, files=_digests(beside))
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
    """Read an adapter folder, of any format in `halka.formats`, into `model` under `name` (the folder's if not given).

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
    with _checked_beside(card, folder) as check:
        if card is not None:
            _check_base(card, model, folder, allow_other_base, allow_other_template)
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
            raise ValueError(f"{folder}: {error}") from None
    return adapter


def _names(files: Files) -> tuple[str, ...]:
    """The files of an adapter, and of the head beside it."""
    return files.config, files.weights, *(() if files.head is None else _names(files.head))


def _write(written: Folder, files: Files, folder: Path) -> None:
    (folder / files.config).write_text(json.dumps(written.config, indent=2) + "\n", encoding="utf-8")
    tensors.write_tensors({key: tensor.cpu() for key, tensor in written.tensors.items()}, folder / files.weights)


def read_config(folder: Path, *, allow_pickle: bool = False) -> dict[str, Any]:
    """The adapter's configuration. Raises ValueError if the folder holds no adapter that can be loaded safely."""
    files = format_of(folder).FILES
    if not (folder / files.config).is_file():
        raise ValueError(f"{folder} holds no {files.config}: it is not an adapter folder")
    weights_of(folder, files, allow_pickle=allow_pickle)
    return read_json(folder / files.config)


def weights_of(folder: Path, files: Files, *, allow_pickle: bool = False) -> Path:
    """The file that holds the weights; a pickle only if that is allowed. Raises ValueError if there is none."""
    if (folder / files.weights).is_file():
        return folder / files.weights
    if allow_pickle and (folder / files.pickle).is_file():
        return folder / files.pickle
    if pickles := ", ".join(path.name for path in folder.glob("*.bin")):
        raise ValueError(
            f"{folder} holds its weights as a pickle ({pickles}), which can run code: where you trust it, pass "
            "allow_pickle (--allow-pickle: torch's loader for weights alone reads it), or have it written anew by "
            "`halka adapters convert --allow-pickle`"
        )
    raise ValueError(f"{folder} holds no {files.weights}: the adapter is incomplete")


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
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not an adapter's configuration: it holds no JSON object")
    return config


def read_tensors(folder: Path, *, allow_pickle: bool = False) -> dict[str, torch.Tensor]:
    """The adapter's tensors by the file's names. Raises ValueError as `tensors.read_tensors` and `weights_of` do."""
    return tensors.read_tensors(weights_of(folder, format_of(folder).FILES, allow_pickle=allow_pickle))


def size_of(folder: Path) -> int:
    """The bytes that the adapter's values take in memory, in fp32. Raises ValueError for a damaged file."""
    return tensors.size_of(folder / format_of(folder).FILES.weights)


def read_card(folder: Path) -> Card | None:
    """The folder's Card, or None: others write none."""
    path = folder / CARD
    if not path.exists():
        return None
    try:
        return Card(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a Card that this version reads: {error}") from None


def check_files(card: Card, folder: Path) -> None:
    """Raises ValueError if the folder's files are not those that its Card was written for."""
    now = _digests(folder)
    if different := [name for name, digest in card.files.items() if now.get(name) != digest]:
        raise ValueError(
            f"{folder}: {' and '.join(different)} changed since {CARD} was written: the copy is damaged, or another "
            f"tool wrote there. Copy it again; if the change is meant, remove {CARD}"
        )


@contextmanager
def _checked_beside(card: Card | None, folder: Path) -> Iterator[Callable[[], None]]:
    """`check_files` in a thread beside what the block does, which can ask for its end.

    That the files changed is told instead of whatever came of it in the block.
    """
    with ThreadPoolExecutor(1) as worker:
        checked = None if card is None else worker.submit(check_files, card, folder)

        def check() -> None:
            if checked is not None:
                checked.result()

        try:
            yield check
        finally:
            check()


def _digests(folder: Path) -> dict[str, str]:
    found, files = {}, format_of(folder).FILES
    own = (files.config, files.weights)
    for name in (*own, *(each for each in _names(files) if each not in own and (folder / each).is_file())):
        with (folder / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256()
            if size:  # nothing cannot be mapped
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as all_of_it:
                    for start in range(0, size, LARGE):
                        digest.update(all_of_it[start : start + LARGE])
            found[name] = digest.hexdigest()
    return found


def template_of(model: AdaptedModel) -> str:
    return "none" if model.tokenizer is None else chat_template_fingerprint(model.tokenizer)


def _check_base(card: Card, model: AdaptedModel, folder: Path, other_base: bool, other_template: bool) -> None:
    if card.kind != (kind := kind_of(model.base)):
        labels = f", labels={list(card.labels)}" if card.labels else ""
        raise ValueError(
            f"{folder} is an adapter of a {card.kind}, and this base is a {kind}: load the base with "
            f'`halka.load_base(name, kind="{card.kind}"{labels})`'
        )
    then = card.base.get("fingerprint")
    if not isinstance(then, dict):
        raise ValueError(f"{folder / CARD} names no base: it is not a Card that this version reads")
    now = own_fingerprint(model)
    if different := [key for key in then if then[key] != now.get(key)]:
        shown = ", ".join(f"{key} {then[key]} instead of {now.get(key)}" for key in different)
        if different != ["weights"] or not other_base:
            hint = "; pass allow_other_base to load it all the same" if different == ["weights"] else ""
            raise ValueError(f"{folder} was made for another base, {card.base.get('name') or 'unnamed'}: {shown}{hint}")
    if card.base.get("head") and not other_base and card.base["head"] != own_fingerprint(model, head=True)["weights"]:
        raise ValueError(
            f"{folder} has no head of its own, and this base's is not the one it was made for: load the base that has "
            "it, or pass allow_other_base"
        )
    forms = card.base.get("quantize"), form_of(model.base)
    if len({*forms}) > 1:
        trained_on, this = ("in full precision" if form is None else f"packed as {form}" for form in forms)
        warnings.warn(
            f"{folder} was trained on this base {trained_on}, which is {this} here: answers will differ a little",
            stacklevel=3,
        )
    if model.tokenizer is not None and card.chat_template not in ("none", template_of(model)) and not other_template:
        raise ValueError(
            f"{folder} was trained with another chat template ({card.chat_template}) than this tokenizer has "
            f"({template_of(model)}): pass allow_other_template to load it all the same"
        )
