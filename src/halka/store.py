"""The adapter folder: a format's two files and a Card, `halka.json`. Saved whole or not at all, loaded strictly."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from halka.core import AdaptedModel, Adapter, described, form_of
from halka.data.tokens import chat_template_fingerprint
from halka.files import new_folder, soon_needed
from halka.formats import Folder, format_named, format_of
from halka.formats.peft import FILES
from halka.models.fingerprint import own_fingerprint

WEIGHTS = FILES.weights  # of what `save` writes, if it is not told otherwise
CARD = "halka.json"
ALIGNED = 64  # bytes
LARGE = 1 << 24  # bytes hashed at a time: in between a thread waits for its turn in Python
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Card:
    """What an adapter folder says of itself."""

    base: Mapping[str, Any]  # name, fingerprint, and the form that it was packed in (`quantize`), or None
    method: Mapping[str, Any]  # name and fields
    parameters: int
    chat_template: str
    task: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    measurements: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    files: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of the two beside it

    def __post_init__(self) -> None:
        for each in fields(self):
            kind = {"str": str, "int": int}.get(str(each.type), Mapping)
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
    adapter, folder, form = model.adapter(name), Path(folder), format_named(format)
    own = (form.FILES.config, form.FILES.weights, CARD, "README.md")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose another folder")
    if other := sorted(path.name for path in folder.glob("*") if path.name not in own):
        raise ValueError(f"{folder} exists and holds {other[0]}, which is no part of an adapter: choose another folder")
    readme = folder / "README.md"
    base: Any = model.base
    with model.own_weights(), torch.no_grad():
        base_name = getattr(base.config, "_name_or_path", "") or ""
        written = form.write(adapter, model.targets, base_name)
    for key, tensor in written.tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"adapter {name!r} holds values that are not finite, in {key}: train it again, more gently"
            )
    card = Card(
        base={"name": base_name, "fingerprint": own_fingerprint(model), "quantize": form_of(model.base)},
        method=described(adapter.method),
        parameters=adapter.count(),
        chat_template=template_of(model),
        task=task,
        training=training or {},
        measurements=measurements or {},
        versions={package: version(package) for package in ("halka", "torch", "transformers")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with new_folder(folder) as beside:
        (beside / form.FILES.config).write_text(json.dumps(written.config, indent=2) + "\n", encoding="utf-8")
        _write_tensors({key: t.cpu() for key, t in written.tensors.items()}, beside / form.FILES.weights)
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
) -> Adapter:
    """Read an adapter folder, ours or peft's, into `model` under `name` (the folder's own if not given).

    The file is mapped into memory, not copied: replace it by renaming, as `save` does, and never write into it.
    Warns where the base is packed (`load_base(quantize=…)`) in another form than the adapter was trained on.
    Raises ValueError, and leaves the model as it was, for: a folder without an adapter, a pickle, another base or chat
    template than the Card names, files that are not those that the Card was written for, unknown or missing tensors,
    shapes that do not fit, values that are not finite.
    """
    folder = Path(folder)
    config = read_config(folder)
    card = read_card(folder)
    form = format_of(folder)
    soon_needed(folder / form.FILES.weights)
    name = folder.resolve().name if name is None else name
    with _checked_beside(card, folder) as check:
        if card is not None:
            _check_base(card, model, folder, allow_other_base, allow_other_template)
        tensors = read_tensors(folder)
        try:
            with model.own_weights():
                method, state = form.read(Folder(config, tensors), model.targets)
            with model.lock:  # nobody uses it before its files are known to be the Card's
                adapter = model.add(name, method, state=state)
                try:
                    check()
                except BaseException:
                    model.remove(name)
                    raise
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None
    return adapter


def _write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """A safetensors file whose values begin at a multiple of `ALIGNED` bytes, after spaces that the format allows.

    Mapped into memory they then stand where torch would put them: some products are rounded otherwise elsewhere.
    """
    packed = path.with_suffix(".packed")
    save_file(dict(tensors), packed, {"format": "pt"})
    with packed.open("rb") as source, path.open("wb") as target:
        header = source.read(int.from_bytes(source.read(8), "little"))
        header += b" " * (-(8 + len(header)) % ALIGNED)
        target.write(len(header).to_bytes(8, "little") + header)
        shutil.copyfileobj(source, target, 1 << 20)
    packed.unlink()


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration. Raises ValueError if the folder holds no adapter that can be loaded safely."""
    files = format_of(folder).FILES
    if not (folder / files.config).is_file():
        raise ValueError(f"{folder} holds no {files.config}: it is not an adapter folder")
    if not (folder / files.weights).is_file():
        pickles = ", ".join(path.name for path in folder.glob("*.bin"))
        if pickles:
            raise ValueError(
                f"{folder} holds its weights as a pickle ({pickles}), which can run code: load it with peft where you "
                "trust it, and save it again with safe_serialization=True"
            )
        raise ValueError(f"{folder} holds no {files.weights}: the adapter is incomplete")
    try:
        config = json.loads((folder / files.config).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / files.config} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{folder / files.config} is not an adapter's configuration: it holds no JSON object")
    return config


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors by the file's names, in fp32; where they are so in the file, mapped into memory.

    Raises ValueError for a damaged file, other types, and values that are not finite.
    """
    weights = folder / format_of(folder).FILES.weights
    try:
        with torch.inference_mode(False):
            tensors = load_file(weights)  # mapped: its pages are read when they are needed, and shared
    except SafetensorError as error:
        raise _damaged(weights, error) from None
    if other := [key for key, tensor in tensors.items() if tensor.dtype not in DTYPES]:
        raise ValueError(
            f"{weights} holds {tensors[other[0]].dtype} in {other[0]}, where an adapter has real numbers of "
            "16, 32 or 64 bits: it is no adapter, or was made in another way"
        )
    tensors = {key: tensor.float() for key, tensor in tensors.items()}
    sums = [tensor.sum() for tensor in tensors.values()]
    if sums and torch.stack(sums).isfinite().all():
        return tensors
    for key, tensor in tensors.items():  # a sum may be no finite number although every value is
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{weights} holds values that are not finite, in {key}: it is damaged or failed")
    return tensors


def size_of(folder: Path) -> int:
    """The bytes that the adapter's values take in memory, in fp32. Raises ValueError for a damaged file."""
    weights = folder / format_of(folder).FILES.weights
    try:
        with safe_open(weights, framework="pt") as file:
            return 4 * sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    except (SafetensorError, FileNotFoundError) as error:
        raise _damaged(weights, error) from None


def _damaged(weights: Path, error: Exception) -> ValueError:
    return ValueError(f"{weights} is damaged ({error}): fetch or train the adapter again")


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
    for name in (files.config, files.weights):
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
    then = card.base.get("fingerprint")
    if not isinstance(then, dict):
        raise ValueError(f"{folder / CARD} names no base: it is not a Card that this version reads")
    now = own_fingerprint(model)
    if different := [key for key in then if then[key] != now.get(key)]:
        shown = ", ".join(f"{key} {then[key]} instead of {now.get(key)}" for key in different)
        if different != ["weights"] or not other_base:
            hint = "; pass allow_other_base to load it all the same" if different == ["weights"] else ""
            raise ValueError(f"{folder} was made for another base, {card.base.get('name') or 'unnamed'}: {shown}{hint}")
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
