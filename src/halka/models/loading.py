"""`load_base`: a short name, a folder or a name on the hub to a base and its tokenizer."""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from halka.models.base_names import HUB_NAME, at_revision, hub_parts, set_base_name
from halka.models.fetching import is_pulled, known_names, pull, short_named
from halka.models.fetching.hub import from_hub
from halka.models.heads import NEW, configured_labels, keep_label_rows, label_rows, new_modules, usable_pad_id
from halka.models.kinds import KINDS, class_names, usual_kind
from halka.models.layouts import LAYOUTS
from halka.models.targets import STORED_QUANTISED
from halka.util.base_folders import cache_dir
from halka.util.dtypes import Dtype, Quantize, dtype_name
from halka.util.errors import DamagedFolderError, HalkaError, OutOfMemoryError
from halka.util.kinds import LABELLED, Kind, checked_labels
from halka.util.machine import memory_named, ran_out
from halka.util.mapped_pages import release_pages_except
from halka.util.precision import lacks_bfloat16, usable_precision
from halka.util.quiet import quiet_libraries
from halka.util.seeds import seeded

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SMALL_JSON = ("config.json", "generation_config.json", "tokenizer_config.json")
HUB_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "model*.safetensors", "README.md"]
NO_PICKLES = (
    "Halka reads safetensors alone, because a pickle can run code. If you trust it, convert it: "
    "AutoModelForCausalLM.from_pretrained(it).save_pretrained(new_folder), and the tokenizer likewise"
)
HUB_LEFT_OUT = ["*/*", "model.*.safetensors", "adapter_config.json"]  # subfolders, weights in other precisions
TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "*tekken*.json")
OVERFLOWING = ("gemma2", "gemma3", "gemma3_text", "gemma4", "gemma4_text")  # float16 does not hold their hidden states
CONVERSION = "automatic conversion of the weights"  # transformers' words for any error while it joins experts' weights


def load_base(
    name_or_path: str | Path,
    *,
    kind: Kind | None = None,
    labels: Sequence[str] | None = None,
    dtype: Dtype | Literal["auto"] | torch.dtype = "bfloat16",
    device: str | torch.device | None = None,
    revision: str | None = None,
    quantize: Quantize | None = None,
    seed: int = 0,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base, in eval mode, and its tokenizer, which has a pad token.

    name_or_path  a short name (`halka base list`; downloaded at its first use), a folder, or a name on the Hugging Face
                  hub, which is downloaded once: `org/model`, or `org/model@revision` for a branch, tag or commit.
                  Only safetensors are read, and no code that comes with a model is run
    kind          what the base is for; as its configuration says if not given
    labels        for sequence-classification and token-classification: what the head predicts. A head that the weights
                  lack is initialised from `seed`; labels that the stored head has too keep their rows, whatever their
                  order and number
    dtype         the precision; auto is the one that is stored. For bfloat16 stands float16 on a GPU that lacks it
                  (float32 for Gemma 2 to 4, which float16 does not hold), and float32 on a processor without
                  instructions for its products, where they take longer
    device        cuda, mps, cpu or the like; the first of these that this machine has if not given. Weights go there
                  directly where accelerate is installed, quantised ones layer by layer
    revision      the same as `@revision` behind the name
    quantize      store the weights of the layers in fewer bits: nf4 or int8 (`halka.models.quantised`)

    Raises HalkaError for an unknown name, kind, dtype, device or form of quantisation; a folder without configuration
    or safetensors; an architecture that has no such kind; weights that lack more than the head. Raises
    DamagedFolderError for weights that cannot be read, OutOfMemoryError where the device does not hold them.
    """
    from safetensors import SafetensorError

    from halka.models.fingerprint import keep_samples_for_fp16, keep_stored_samples
    from halka.models.quantised import check_quantize, quantise

    if quantize is not None:
        check_quantize(quantize)
    precision = dtype_name(dtype, "auto")
    place = place_of(device)
    name_or_path = _at(name_or_path, revision)
    folder = resolve(name_or_path, fetch=True)
    weight_files(folder)
    config = read_config(folder, name_or_path)
    kind = kind or usual_kind(config)
    labels = _labels_for(kind, labels)
    tokenizer = read_tokenizer(folder, name_or_path)
    too_large = f"{name_or_path} does not fit in the memory of {place}: {_smaller(quantize)}"
    with memory_named(too_large), quiet_libraries():
        try:
            check_class(config, kind)
            options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
            if usable_pad_id(config) is None:
                options |= _without_pad(config)  # else the embedding would be built with it
            load = functools.partial(_from_folder, folder, kind, labels, seed, **options)
            direct = {"": place} if place.type != "cpu" and reads_directly(quantize, kind) else None
            model = load(dtype=precision_on(place, precision, config), device_map=direct)
            if model.dtype == torch.float16 and getattr(config, "dtype", None) != torch.float16:
                keep_stored_samples(model, load(dtype="auto"))
            elif model.dtype in (torch.float32, torch.bfloat16):
                keep_samples_for_fp16(model)
        except SafetensorError as error:
            raise DamagedFolderError(f"the weights in {folder} are damaged ({error}): {_anew(name_or_path)}") from error
        except (*unreadable(), RuntimeError) as error:
            if ran_out(error) or not (isinstance(error, HalkaError) or _of_transformers(error)):
                raise
            if CONVERSION in str(error) and place.type != "cpu":
                raise OutOfMemoryError(
                    f"the weights of {name_or_path} could not be joined on {place}, most likely because its memory is "
                    f'full: {_smaller(quantize)}. With device="cpu" they can be if they are whole'
                ) from error
            if getattr(config, "quantization_config", None) and not isinstance(error, HalkaError):
                raise HalkaError(f"{name_or_path} cannot be loaded, {STORED_QUANTISED} ({error})") from error
            name = "causal language model" if kind == "causal-lm" else kind
            raise HalkaError(f"{name_or_path} cannot be loaded as a {name}: {error}") from error
        release_file_pages(model, folder)
        if quantize is not None:
            quantise(model, quantize, place)
        model = model.to(place)
    set_base_name(model, name_or_path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    if usable_pad_id(model.config) is None:  # a classifier finds the end of a text by it
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if model.can_generate() and usable_pad_id(model.config, model.generation_config) is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id  # else generate() warns at every call
    return model.eval(), tokenizer


def _at(name_or_path: str | Path, revision: str | None) -> str | Path:
    """A name on the hub with its revision. Raises HalkaError for another name with one, and for two revisions."""
    if revision is None:
        return name_or_path
    name = str(name_or_path)
    if isinstance(name_or_path, Path) or short_named(name) or Path(name).expanduser().is_dir():
        raise HalkaError(f"revision {revision!r} is for names on the hub; {name} has none")
    if hub_parts(name)[1] not in (None, revision):
        raise HalkaError(f"{name} has another revision than {revision!r}: name one")
    return at_revision(name, revision)


def _without_pad(config: Any) -> dict[str, Any]:
    """The options with which transformers reads the configuration, and its text's within it, without padding tokens."""
    own = {"pad_token_id": None} if getattr(config, "pad_token_id", None) is not None else {}
    text = config.get_text_config()
    nested = {key: _without_pad(text) for key, inner in vars(config).items() if inner is text}
    return own | {key: options for key, options in nested.items() if options}


def _anew(name_or_path: str | Path) -> str:
    """How a base is fetched anew: of a name on the hub the folder holds links alone, to files that would stay."""
    if short_named(name_or_path) or Path(name_or_path).expanduser().is_dir():
        return "remove it and fetch it anew"
    name, revision = hub_parts(str(name_or_path))
    return f"`hf download {name}{f' --revision {revision}' if revision else ''} --force-download` fetches it anew"


def _smaller(quantize: str | None) -> str:
    return "use a smaller base" if quantize == "nf4" else "use quantize=nf4, or a smaller base"


def precision_on(place: torch.device, precision: str, config: Any) -> torch.dtype | Literal["auto"]:
    """The precision as transformers takes it; another than bfloat16 where the device lacks that.

    On a CPU "auto" keeps what is stored, whatever it takes.
    """
    if precision == "auto":
        if place.type != "cuda" or getattr(config, "dtype", None) != torch.bfloat16 or not lacks_bfloat16(place):
            return "auto"
        precision = "bfloat16"
    usable = usable_precision(precision, place)
    return torch.float32 if usable != precision and config.model_type in OVERFLOWING else getattr(torch, usable)


def reads_directly(quantize: Quantize | None, kind: Kind = "causal-lm") -> bool:
    """Whether each weight is read to a GPU as it is, so that the base does not pass through main memory.

    It takes accelerate. A new head begins on the CPU, so that it follows from the seed alone.
    """
    from transformers.utils.import_utils import is_accelerate_available

    return quantize is None and kind not in LABELLED and is_accelerate_available()


def release_file_pages(model: PreTrainedModel, folder: Path) -> None:
    """Unmap the parts of a base's files that hold none of its tensors: loading experts leaves them mapped."""
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.device.type == "cpu"]
    storages = [tensor.untyped_storage() for tensor in tensors]
    release_pages_except(folder.glob("*.safetensors"), [(storage.data_ptr(), storage.nbytes()) for storage in storages])


def base_config(name_or_path: str | Path) -> PretrainedConfig:
    """A base's configuration, without its weights: from the hub nothing else is downloaded.

    Raises HalkaError for an unknown name, and for a folder without a configuration.
    """
    info = short_named(name_or_path)
    if info is not None and not is_pulled(cache_dir() / "bases" / info.name):
        from transformers import AutoConfig

        return AutoConfig.for_model(**info.config)
    folder = resolve(name_or_path, fetch=True, config_only=True)
    _check_config(folder)
    return _of_text(read_config(folder, name_or_path))


def read_config(folder: Path, name: object) -> PretrainedConfig:
    """The configuration in a base's folder. Raises HalkaError, with the base's name, for one that cannot be read."""
    from transformers import AutoConfig

    with quiet_libraries():
        try:
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except unreadable() as error:
            raise HalkaError(f"{name} cannot be read: {error}") from error


def read_tokenizer(folder: Path, name: object) -> PreTrainedTokenizerBase:
    """The tokenizer in a base's folder. Raises HalkaError, with the base's name, for one that cannot be read."""
    from transformers import AutoTokenizer

    with quiet_libraries():
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            if type(error) is not Exception and not isinstance(error, unreadable()):  # tokenizers raises the plain one
                raise
            _check_json(folder / "tokenizer.json")
            raise HalkaError(f"the tokenizer of {name} cannot be read: {error}") from error


def unreadable() -> tuple[type[Exception], ...]:
    """What transformers raises for a configuration that it cannot read."""
    from huggingface_hub.errors import StrictDataclassError

    of_values = (KeyError, ValueError, TypeError, AttributeError, AssertionError, ZeroDivisionError, RecursionError)
    return (OSError, ImportError, *of_values, StrictDataclassError)


def _of_transformers(error: Exception) -> bool:
    """Whether it comes from within transformers: another one is no sign of files that cannot be read."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").partition(".")[0] == "transformers" for frame, _ in frames)


def _of_text(config: Any) -> PretrainedConfig:
    """The text's part of a configuration with images where transformers loads the language model alone (Qwen 3.5)."""
    text = config.get_text_config()
    alone = class_names(text.model_type).get("causal-lm")
    return text if alone == class_names(config.model_type).get("causal-lm") else config


def resolve(name_or_path: str | Path, *, fetch: bool, config_only: bool = False) -> Path:
    """The folder of a short name, a path or a name on the hub; downloaded if need be and if `fetch` allows it.

    config_only: of a name on the hub nothing but its configuration is downloaded.
    """
    name = str(name_or_path)
    if not isinstance(name_or_path, (str, Path)) or not name:
        raise HalkaError(f"a base is a short name, a folder or a name on the hub, not {name_or_path!r}")
    info = short_named(name_or_path)
    folder = Path(name).expanduser() if info is None else cache_dir() / "bases" / name
    if info is not None and not fetch and not is_pulled(folder):
        raise HalkaError(f"{name} is not on this machine yet; `halka base pull {name}` fetches it")
    if info is not None:
        return pull(name)
    if folder.is_dir():
        return folder
    remote = HUB_NAME.fullmatch(name)
    if isinstance(name_or_path, Path) or folder.is_file() or remote is None:
        problem = "is a file; a base is a folder" if folder.is_file() else "is no folder"
        raise HalkaError(f"{name} {problem}; {known_names(name)}")

    def check(folder: Path) -> None:
        _check_config(folder)
        if config_only:
            return
        if not any(folder.glob("model*.safetensors*")):
            raise HalkaError(
                f"{name} has no safetensors on the hub. {NO_PICKLES}; or name a revision that has some, such as "
                f"{remote['name']}@refs/pr/1"
            )
        weight_files(folder)
        files = [file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)]
        if not files and read_tokenizer(folder, name).vocab_files_names:  # one of bytes has none, as ByT5's
            raise HalkaError(
                f"{name} has no tokenizer on the hub: save one beside its weights in a folder, and name that"
            )

    return from_hub(
        *(remote["name"], remote["revision"]),
        files=["config.json"] if config_only else HUB_FILES,
        left_out=HUB_LEFT_OUT,
        check=check,
        thing="a model",
        hint=known_names(name),
        fetch=fetch,
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a base. Raises HalkaError if the folder has no config or lacks some of the files."""
    _check_config(folder)
    index = folder / "model.safetensors.index.json"
    files = [folder / "model.safetensors"]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            files = [folder / name for name in names]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DamagedFolderError(f"{index} is damaged; fetch or copy it again") from None
    if all(file.is_file() for file in files):
        return files
    others = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt", ".gguf"))
    if others and len(files) == 1:
        raise HalkaError(f"{folder} has no model.safetensors, only {', '.join(others)}. {NO_PICKLES}")
    if lost := [file for file in files if file.is_symlink() and not file.is_file()]:
        raise HalkaError(f"{lost[0]} is a link to {lost[0].readlink()}, where nothing is: bring that back")
    lacking = [file.name for file in files if not file.is_file()]
    raise HalkaError(f"{folder} lacks {', '.join(lacking)}; fetch or copy it again")


def _check_config(folder: Path) -> None:
    """Raises HalkaError for a folder without config.json, DamagedFolderError for files that are not JSON objects."""
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        reason = (
            "it holds an adapter; give the base it was trained on" if adapter else "a base has one beside its weights"
        )
        raise HalkaError(f"{folder} has no config.json: {reason}")
    if (folder / "adapter_config.json").is_file():  # which transformers would put into the base
        raise HalkaError(f"{folder} holds a base and an adapter: remove adapter_config.json, or move it elsewhere")
    for name in SMALL_JSON:
        _check_json(folder / name)


def _check_json(file: Path) -> None:
    """Raises DamagedFolderError for a file that is there and no JSON object: transformers fails in many ways on it."""
    try:
        whole = not file.is_file() or isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise DamagedFolderError(f"{file} is damaged: it is not a JSON object. Fetch or copy it again")


def place_of(device: str | torch.device | None = None) -> torch.device:
    """The device of that name, else the first of cuda, mps, cpu that this machine has.

    Raises HalkaError for a device that this machine does not have.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device is None:
        return torch.device(next(kind for kind, is_present in present.items() if is_present))
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise HalkaError(f"device {device!r} is none of {', '.join(present)} (or cuda:1, …)") from error
    here = present[place.type] if place.type in present else _has_values(place)
    if not here or (place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count()):
        usable = ", ".join(kind for kind, is_present in present.items() if is_present)
        raise HalkaError(f"this machine has no device {str(device)!r}: it has {usable}")
    return place


def _has_values(place: torch.device) -> bool:
    """Whether tensors there have values that can be read: torch knows devices that few machines have, and meta."""
    try:
        return bool(torch.ones(1, device=place).cpu() == 1)
    except (RuntimeError, AssertionError, ImportError):  # by the kind of device
        return False


def _labels_for(kind: str, labels: Sequence[str] | None) -> tuple[str, ...] | None:
    """The labels of a base of that kind.

    Raises HalkaError for an unknown kind, for labels of a kind without any, and as `checked_labels` does.
    """
    if kind not in KINDS:
        raise HalkaError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    if labels is not None and kind not in LABELLED:
        raise HalkaError(f"labels are for {' and '.join(LABELLED)}: a {kind} has none")
    return None if labels is None else checked_labels(labels)


def check_class(config: Any, kind: str) -> None:
    """Raises HalkaError if transformers has no base of that kind with the configuration's architecture."""
    layout, classes = LAYOUTS.get(config.model_type), class_names(config.model_type)
    if kind == "causal-lm" and layout is not None and not layout.causal:
        raise HalkaError(
            f"it is an encoder ({config.model_type}), not a causal language model: name another kind, "
            "such as sequence-classification"
        )
    if kind not in classes:
        others = f"choose a kind of {', '.join(classes)}" if classes else "it is no language model: choose another base"
        raise HalkaError(f"transformers has no {kind} of the architecture {config.model_type!r}: {others}")


def _from_folder(folder: Path, kind: Kind, labels: Sequence[str] | None, seed: int, **options: Any) -> Any:
    """A base of that kind from a folder; a head that its weights lack is initialised from `seed`.

    Labels that the stored head has too keep their rows, in any order and number.
    Raises HalkaError for a new head without labels, and weights that lack anything but the head.
    """
    import transformers

    named = (
        {}
        if labels is None
        else {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: place for place, label in enumerate(labels)},
        }
    )
    with seeded(seed), torch.device("cpu"):
        model, report = getattr(transformers, KINDS[kind]).from_pretrained(
            folder,
            **named,
            **options,
            use_kernels=False,  # transformers would take code from the hub, and modules' forwards with every mode
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    new = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    modules = new_modules(new, model) if kind in LABELLED else ()
    if missing := sorted(key for key in new if not any(key.startswith(f"{path}.") for path in modules)):
        raise HalkaError(
            f"the weights of {folder} lack {len(missing)} tensors of a {type(model).__name__}, or have them in another "
            f"shape, such as {missing[0]}; transformers would fill them at random. Give complete weights of a {kind}"
        )
    if new and labels is None:
        raise HalkaError(
            f"the weights of {folder} have no head for labels: name the labels that it is to learn, "
            f'`halka.load_base(name, kind="{kind}", labels=[…])`, or `halka adapters convert --labels`'
        )
    if labels is not None:
        own: Any = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        rows = set(label_rows(model))
        stored = _stored(folder, rows) if rows & new else {key: model.get_parameter(key) for key in rows}
        keep_label_rows(model, stored, configured_labels(own), labels)
    setattr(model.config, NEW, list(modules))
    return model


def _stored(folder: Path, keys: Set[str]) -> dict[str, Tensor]:
    """Those of the tensors that a base's files hold."""
    from safetensors import safe_open

    stored: dict[str, Tensor] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            stored |= {key: tensors.get_tensor(key) for key in keys & set(tensors.keys())}
    return stored
