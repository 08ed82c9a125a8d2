"""Settings: dataclass fields that a YAML file, the environment and flags set, each overriding the one before.

    in the file             in the environment        as a flag
    rank: 8                 HALKA_TRAIN_RANK=8        --rank 8
    train: {lr: 0.001}      HALKA_TRAIN_LR=0.001      --lr 0.001

An unknown key is an error that names its path and the setting that was likely meant. A field's metadata may hold
`help`, `metavar`, `short` (a shorter flag), and `beside`: for a name that may also be a path, a function that says
whether a path is one. A file writes such paths, and every `Path`, relative to its own folder; with `keyed` the path may
come after a "KEY=".
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from halka.util.errors import HalkaError
from halka.util.suggest import instead, suggest

T = TypeVar("T")

PREFIX = re.compile("HALKA_[A-Z]+_")
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*=")
Keyed = dict[str, Any]  # keys and values, which a flag writes as YAML in one line
WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    Keyed: "YAML with keys",
}
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "FILE"}


@dataclass(frozen=True)
class Setting:
    """One field that can be set: its path in a file ("train.lr"), type, help and default."""

    path: str
    kind: Any
    help: str
    default: Any = None
    required: bool = False
    metavar: str = ""
    short: str = ""
    beside: Callable[[Path], bool] | None = None
    keyed: bool = False
    command: str = "train"

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return self.prefix + self.name.upper()

    @property
    def prefix(self) -> str:
        """What the variables of its command begin with."""
        return f"HALKA_{self.command.upper()}_"

    @property
    def optional(self) -> bool:
        return type(None) in typing.get_args(self.kind)

    @property
    def item(self) -> type:
        """The type of one value: int for `int | None` and for `tuple[int, ...]`, str for a `Literal` of texts."""
        return str if self.choices else self._one

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a `Literal`, also of a tuple of them; none of another type."""
        return typing.get_args(self._one) if typing.get_origin(self._one) is typing.Literal else ()

    @property
    def _one(self) -> Any:
        kind = self.kind
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            (kind,) = (option for option in typing.get_args(kind) if option is not type(None))
        return typing.get_args(kind)[0] if self.many else kind

    @property
    def many(self) -> bool:
        return typing.get_origin(self.kind) is tuple

    @property
    def repeated(self) -> bool:
        """Whether a flag has one of its values, and is repeated for more: values may have commas."""
        return self.many and self.item in (Path, Keyed)

    @property
    def shown(self) -> str:
        """The default as a user would write it; empty without one."""
        if self.default is None or self.default is False or self.default == ():
            return ""
        if self.many:
            return ",".join(map(str, self.default))
        return f"{self.default:g}" if self.item is float else str(self.default)

    @property
    def words(self) -> str:
        """The values that it takes, for messages."""
        one = f"one of {', '.join(self.choices)}" if self.choices else WORDS[self.item]
        several = ", or several with commas between" if self.many and not self.repeated else ""
        return f"{one}{several}" + (", or none" if self.optional else "")


@dataclass(frozen=True)
class Entry:
    """A value, and where it was set, for messages."""

    value: Any
    where: str


Layer = dict[str, Entry]  # by the setting's path


def settings_of(cls: type, section: str = "", command: str = "train") -> dict[str, Setting]:
    """A dataclass's fields as settings of `halka command`, by path, which begins with `section`."""
    hints = typing.get_type_hints(cls)
    settings: dict[str, Setting] = {}
    for field in fields(cls):
        path = f"{section}.{field.name}" if section else field.name
        item = Setting(path, hints[field.name], "").item
        settings[path] = Setting(
            path,
            hints[field.name],
            help=field.metadata.get("help", ""),
            default=None if field.default is MISSING else field.default,
            required=field.default is MISSING,
            metavar=field.metadata.get("metavar", METAVARS.get(item, "")),
            short=field.metadata.get("short", ""),
            beside=_always if item is Path else field.metadata.get("beside"),
            keyed=field.metadata.get("keyed", False),
            command=command,
        )
    return settings


def documented(cls: type[T]) -> type[T]:
    """Append every field's type, default and help to a dataclass's docstring, so that `help(cls)` explains them."""
    lines = []
    for field in fields(cls):  # type: ignore[arg-type]
        default = "" if field.default is MISSING else f" = {field.default!r}"
        lines.append(f"    {field.name}: {field.type}{default}")
        lines.append(f"        {field.metadata.get('help', '')}")
    cls.__doc__ = "\n".join([f"{cls.__doc__}", "", "Fields:", *lines])
    return cls


def from_file(file: Path, settings: Mapping[str, Setting]) -> Layer:
    """The settings in a YAML file. Raises HalkaError for a missing file, one that is no YAML, and an unknown key."""
    return from_content(yaml_of(file), file, settings)


def yaml_of(file: Path, otherwise: str = "") -> dict[Any, Any]:
    """A YAML file's keys and values. An empty file has none, or is an error that says that it holds `otherwise`.

    Raises HalkaError for a missing file, and for one that holds something else.
    """
    import yaml

    from halka.util.yaml_text import read_yaml

    try:
        content = read_yaml(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HalkaError(f"there is no file {file}: check the path, it is seen from {Path.cwd()}") from None
    except IsADirectoryError:
        raise HalkaError(f"{file} is a folder: name a file in it") from None
    except UnicodeDecodeError as error:
        raise HalkaError(f"{file} is not UTF-8 text ({error.reason}): save it as UTF-8") from None
    except (yaml.YAMLError, OSError, RecursionError) as error:
        raise HalkaError(f"{file} cannot be read as YAML: {error}") from None
    if content is None and not otherwise:
        return {}
    if not isinstance(content, dict):
        instead = otherwise or "no settings: it needs keys and values, such as method: lora"
        raise HalkaError(f"{file} holds {instead}")
    return content


def from_content(content: Mapping[Any, Any], file: Path, settings: Mapping[str, Setting], within: str = "") -> Layer:
    """The settings in a file's keys and values; `within` is their place in the file, for messages.

    Paths are relative to the file's folder. Raises HalkaError for an unknown key.
    """
    layer = {}
    for path, value in _leaves(content, settings):
        if path not in settings:
            raise HalkaError(
                f"{file}: {within}{path}: there is no such setting{_hint(path, settings, _command(settings))}"
            )
        setting = settings[path]
        seen = _relative_to(file.parent, value, setting.beside, setting.keyed) if setting.beside else value
        layer[path] = Entry(seen, f"{file}: {within}{path}")
    return layer


def from_environment(environment: Mapping[str, str], settings: Mapping[str, Setting]) -> Layer:
    """The settings in variables of their command, if not empty. Raises HalkaError for an unknown variable."""
    by_variable = {setting.variable: setting for setting in settings.values()}
    prefixes = tuple({setting.prefix for setting in settings.values()})
    layer = {}
    for variable, value in sorted(environment.items()):
        if not variable.startswith(prefixes) or not value:
            continue
        if variable not in by_variable:
            hint = _hint(variable, by_variable, _command(settings))
            raise HalkaError(f"{variable}: there is no such setting{hint}")
        layer[by_variable[variable].path] = Entry(value, variable)
    return layer


def from_flags(flags: Mapping[str, Any], settings: Mapping[str, Setting]) -> Layer:
    """The settings on the command line: `flags` by their names, None where a flag was not used."""
    return {
        setting.path: Entry(flags[setting.name], setting.flag)
        for setting in settings.values()
        if flags.get(setting.name) is not None
    }


def build(cls: type[T], settings: Mapping[str, Setting], layer: Mapping[str, Entry]) -> T:
    """The dataclass whose fields are `settings`, with the values in `layer`, else their defaults.

    Raises HalkaError naming where a wrong value was set, or how to set one that is missing.
    """
    values = {}
    for path, setting in settings.items():
        if path in layer:
            values[setting.name] = convert(setting, layer[path])
        elif setting.required:
            raise HalkaError(
                f"{setting.name} is missing ({setting.help}): give {setting.flag} {setting.metavar}, "
                f"{setting.path}: in a file for --config, or {setting.variable}"
            )
    return cls(**values)


def convert(setting: Setting, entry: Entry) -> Any:
    """The value in the setting's type. Text may be "none" where None is allowed, and hold several values with commas.

    Raises HalkaError naming where it was set and what it should be.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    value = entry.value
    if isinstance(value, str):
        if setting.optional and value.lower() in ("none", "null"):
            value = None
        elif setting.many:
            value = [value] if setting.repeated else [item.strip() for item in value.split(",") if item.strip()]
    if setting.item == Keyed and isinstance(value, list):
        value = [_keyed(item) for item in value]
    wrong = HalkaError(f"{entry.where}: {entry.value!r} is not {setting.words}")
    if isinstance(value, bool) and setting.item is not bool:
        raise wrong
    try:
        adapter = TypeAdapter(setting.kind, config=ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False))
        return adapter.validate_python(value)
    except ValidationError:
        raise wrong from None


def _keyed(value: Any) -> Any:
    """Keys and values out of a line of YAML, whose braces may be left out; anything else stays as it is."""
    import yaml

    from halka.util.yaml_text import read_yaml

    if not isinstance(value, str):
        return value
    try:
        return read_yaml(value if value.lstrip().startswith("{") else f"{{{value}}}")
    except yaml.YAMLError:
        return value


def converted(settings: Mapping[str, Setting], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name, each in its setting's type. Raises HalkaError naming a wrong or unknown one."""
    if unknown := next((key for key in values if key not in settings), None):
        raise HalkaError(no_such_setting(str(unknown), settings))
    return {key: convert(settings[key], Entry(value, key)) for key, value in values.items()}


def no_such_setting(name: str, settings: Iterable[str]) -> str:
    """The message about an unknown setting, with the one that was likely meant."""
    return f"{name}: there is no such setting{_hint(name, settings)}"


def merged(owned: Mapping[str, Mapping[str, Setting]]) -> dict[str, Setting]:
    """One setting for each path that some of the owners have; its help names them and their defaults."""
    owners_of: dict[str, dict[str, Setting]] = {}
    for owner, settings in owned.items():
        for path, setting in settings.items():
            owners_of.setdefault(path, {})[owner] = setting
    return {path: _unite(path, owners) for path, owners in owners_of.items()}


def _unite(path: str, owners: Mapping[str, Setting]) -> Setting:
    first = next(iter(owners.values()))
    kinds = {_without_choices(setting) for setting in owners.values()}
    assert len(kinds) == 1, f"{path} is not of one type: {sorted(owners)}"
    alike: dict[tuple[str, str], list[str]] = {}
    for owner, setting in owners.items():
        alike.setdefault((setting.help, setting.shown), []).append(owner)
    help = [
        f"{', '.join(names)}: {help}" + (f" [{default}]" if default else "") for (help, default), names in alike.items()
    ]
    return Setting(path, kinds.pop(), "; ".join(help), metavar=first.metavar, short=first.short, beside=first.beside)


def _without_choices(setting: Setting) -> Any:
    """The setting's type, with `str` for a `Literal`: two methods may offer different choices under one name."""
    kind = tuple[setting.item, ...] if setting.many else setting.item
    return kind | None if setting.optional else kind


def _leaves(content: Mapping[Any, Any], settings: Mapping[str, Setting], above: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        path = f"{above}{key}"
        if isinstance(value, dict) and path not in settings:
            yield from _leaves(value, settings, f"{path}.")
        elif value is None and any(other.startswith(f"{path}.") for other in settings):
            continue  # an empty section
        else:
            yield path, value


def _always(path: Path) -> bool:
    return True


def _relative_to(folder: Path, value: Any, is_path: Callable[[Path], bool], keyed: bool) -> Any:
    """A path that a file in `folder` writes, relative to the working folder; any other value as it is."""
    if isinstance(value, list):
        return [_relative_to(folder, item, is_path, keyed) for item in value]
    if not isinstance(value, str):
        return value
    key, written = split_key(value) if keyed else ("", value)
    path = folder / Path(written).expanduser()
    return f"{key}{path}" if is_path(path) else value


def split_key(value: str) -> tuple[str, str]:
    """A value's "KEY=", empty without one, and the rest."""
    key = match[0] if (match := KEY.match(value)) else ""
    return key, value[len(key) :]


def _hint(wrong: str, settings: Iterable[str], command: str = "train") -> str:
    """The end of a message about an unknown path or variable: the one that was likely meant, or what there is."""
    paths = {_last_name(path): path for path in settings}
    if other := instead(_last_name(wrong)):
        return f": {other}"
    close = suggest(_last_name(wrong), paths)
    return f"; did you mean {paths[close]}?" if close else f": `halka {command} --help` lists all"


def _last_name(path: str) -> str:
    return PREFIX.sub("", path.rpartition(".")[2], count=1)


def _command(settings: Mapping[str, Setting]) -> str:
    return next((setting.command for setting in settings.values()), "train")


def plain_fields(value: Any) -> dict[str, Any]:
    """A dataclass's fields as plain data for a file anywhere: paths are absolute."""
    return {field.name: _plain(getattr(value, field.name), field.metadata.get("beside")) for field in fields(value)}


def _plain(value: Any, is_path: Callable[[Path], bool] | None) -> Any:
    if isinstance(value, tuple):
        return [_plain(item, is_path) for item in value]
    if isinstance(value, Path) or (is_path is not None and isinstance(value, str) and is_path(Path(value))):
        return str(Path(value).absolute())
    return value
