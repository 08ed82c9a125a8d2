"""Settings: a dataclass field said once, given by a YAML file, the environment or a flag, in rising order.

    in the file             in the environment        as a flag
    rank: 8                 HALKA_TRAIN_RANK=8        --rank 8
    train: {lr: 0.001}      HALKA_TRAIN_LR=0.001      --lr 0.001

A key that no setting has is an error that names its path and the closest one. A field's metadata may hold `help`,
`metavar`, `short` (a one-letter flag), and `beside`: for a name that may also be a path, what says of a path whether it
is meant. A file gives such a path, and every `Path`, as seen from its own folder.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from halka.util.errors import HalkaError
from halka.util.suggest import suggest

T = TypeVar("T")

PREFIX = "HALKA_TRAIN_"
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "FILE"}


@dataclass(frozen=True)
class Setting:
    """One field that may be set: its path in a file ("train.lr"), its type, its meaning and what it is otherwise."""

    path: str
    kind: Any
    help: str
    default: Any = None
    required: bool = False
    metavar: str = ""
    short: str = ""
    beside: Callable[[Path], bool] | None = None

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

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
    def shown(self) -> str:
        """The default as one would write it; nothing where there is none."""
        if self.default is None or self.default is False or self.default == ():
            return ""
        if self.many:
            return ",".join(map(str, self.default))
        return f"{self.default:g}" if self.item is float else str(self.default)

    @property
    def words(self) -> str:
        """What it takes, for messages."""
        one = f"one of {', '.join(self.choices)}" if self.choices else WORDS[self.item]
        return (f"{one}, or several with commas between" if self.many else one) + (", or none" if self.optional else "")


@dataclass(frozen=True)
class Given:
    """A value as it was given, and where."""

    value: Any
    where: str


Layer = dict[str, Given]  # by the setting's path


def settings_of(cls: type, section: str = "") -> dict[str, Setting]:
    """The settings that are a dataclass's fields, by path; `section` stands before each."""
    hints = typing.get_type_hints(cls)
    found = {}
    for each in fields(cls):
        path = f"{section}.{each.name}" if section else each.name
        item = Setting(path, hints[each.name], "").item
        found[path] = Setting(
            path,
            hints[each.name],
            help=each.metadata.get("help", ""),
            default=None if each.default is MISSING else each.default,
            required=each.default is MISSING,
            metavar=each.metadata.get("metavar", METAVARS.get(item, "")),
            short=each.metadata.get("short", ""),
            beside=_always if item is Path else each.metadata.get("beside"),
        )
    return found


def documented(cls: type[T]) -> type[T]:
    """Append every field's type, default and help to a dataclass's docstring, so that `help(cls)` explains them."""
    lines = []
    for field in fields(cls):  # type: ignore[arg-type]
        default = "" if field.default is MISSING else f" = {field.default!r}"
        lines.append(f"    {field.name}: {field.type}{default}")
        lines.append(f"        {field.metadata.get('help', '')}")
    cls.__doc__ = "\n".join([f"{cls.__doc__}", "", "Fields:", *lines])
    return cls


def from_file(file: Path, known: Mapping[str, Setting]) -> Layer:
    """What a YAML file says. Raises ValueError for a file that is not there or no YAML, and for an unknown key."""
    return from_content(yaml_of(file), file, known)


def yaml_of(file: Path, otherwise: str = "") -> dict[Any, Any]:
    """A YAML file's keys and values; of an empty file none, unless `otherwise` says what a file without them holds.

    Raises ValueError for a file that is not there or holds something else.
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HalkaError(f"there is no file {file}: check the path, it is seen from {Path.cwd()}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise HalkaError(f"{file} cannot be read as YAML: {error}") from None
    if content is None and not otherwise:
        return {}
    if not isinstance(content, dict):
        what = otherwise or "no settings: it needs keys and values, such as method: lora"
        raise HalkaError(f"{file} holds {what}")
    return content


def from_content(content: Mapping[Any, Any], file: Path, known: Mapping[str, Setting], within: str = "") -> Layer:
    """What keys and values of a file say; those of a part of it stand `within`. Paths are seen from the file's folder.

    Raises ValueError for an unknown key.
    """
    layer = {}
    for path, value in _leaves(content, known):
        if path not in known:
            raise HalkaError(f"{file}: {within}{path}: there is no such setting{_hint(path, known)}")
        setting = known[path]
        seen = _seen_from(file.parent, value, setting.beside) if setting.beside else value
        layer[path] = Given(seen, f"{file}: {within}{path}")
    return layer


def from_environment(environment: Mapping[str, str], known: Mapping[str, Setting]) -> Layer:
    """What variables that begin with `PREFIX` say; an empty one says nothing. Raises ValueError for an unknown one."""
    by_variable = {setting.variable: setting for setting in known.values()}
    layer = {}
    for variable, value in sorted(environment.items()):
        if not variable.startswith(PREFIX) or not value:
            continue
        if variable not in by_variable:
            raise HalkaError(f"{variable}: there is no such setting{_hint(variable, by_variable)}")
        layer[by_variable[variable].path] = Given(value, variable)
    return layer


def from_flags(flags: Mapping[str, Any], known: Mapping[str, Setting]) -> Layer:
    """What was given on the command line, by the settings' names; None was not given."""
    return {
        setting.path: Given(flags[setting.name], setting.flag)
        for setting in known.values()
        if flags.get(setting.name) is not None
    }


def build(cls: type[T], settings: Mapping[str, Setting], given: Mapping[str, Given]) -> T:
    """The dataclass whose fields are `settings`, from what is `given`; the rest keep their defaults.

    Raises ValueError naming where a wrong value was given, or how to give one that is missing.
    """
    values = {}
    for path, setting in settings.items():
        if path in given:
            values[setting.name] = convert(setting, given[path])
        elif setting.required:
            raise HalkaError(
                f"{setting.name} is missing ({setting.help}): give {setting.flag} {setting.metavar}, "
                f"{setting.path}: in a file for --config, or {setting.variable}"
            )
    return cls(**values)


def convert(setting: Setting, given: Given) -> Any:
    """The value in the setting's own type. Text may be "none" where that is allowed, and hold commas for several.

    Raises ValueError naming where it was given and what it should be.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    value = given.value
    if isinstance(value, str):
        if setting.optional and value.lower() in ("none", "null"):
            value = None
        elif setting.many:
            value = [value] if setting.item is Path else [each.strip() for each in value.split(",") if each.strip()]
    wrong = HalkaError(f"{given.where}: {given.value!r} is not {setting.words}")
    if isinstance(value, bool) and setting.item is not bool:
        raise wrong
    try:
        adapter = TypeAdapter(setting.kind, config=ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False))
        return adapter.validate_python(value)
    except ValidationError:
        raise wrong from None


def converted(settings: Mapping[str, Setting], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the settings' names, each in its own type. Raises ValueError naming a wrong or unknown one."""
    if unknown := next((key for key in values if key not in settings), None):
        raise HalkaError(f"{unknown}: there is no such setting{_hint(str(unknown), settings)}")
    return {key: convert(settings[key], Given(value, key)) for key, value in values.items()}


def united(owned: Mapping[str, Mapping[str, Setting]]) -> dict[str, Setting]:
    """One setting for each path that some of the owners have, whose help says which, and with what default."""
    found: dict[str, dict[str, Setting]] = {}
    for owner, settings in owned.items():
        for path, setting in settings.items():
            found.setdefault(path, {})[owner] = setting
    return {path: _unite(path, owners) for path, owners in found.items()}


def _unite(path: str, owners: Mapping[str, Setting]) -> Setting:
    first = next(iter(owners.values()))
    kinds = {_without_choices(setting) for setting in owners.values()}
    assert len(kinds) == 1, f"{path} is not of one type: {sorted(owners)}"
    alike: dict[tuple[str, str], list[str]] = {}
    for owner, setting in owners.items():
        alike.setdefault((setting.help, setting.shown), []).append(owner)
    told = [
        f"{', '.join(names)}: {help}" + (f" [{default}]" if default else "") for (help, default), names in alike.items()
    ]
    return Setting(path, kinds.pop(), "; ".join(told), metavar=first.metavar, short=first.short, beside=first.beside)


def _without_choices(setting: Setting) -> Any:
    """The setting's type, with `str` for a `Literal`: two methods may offer different choices under one name."""
    kind = tuple[setting.item, ...] if setting.many else setting.item
    return kind | None if setting.optional else kind


def _leaves(content: Mapping[Any, Any], known: Mapping[str, Setting], above: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in content.items():
        path = f"{above}{key}"
        if isinstance(value, dict) and path not in known:
            yield from _leaves(value, known, f"{path}.")
        elif value is None and any(each.startswith(f"{path}.") for each in known):
            continue  # an empty section
        else:
            yield path, value


def _always(path: Path) -> bool:
    return True


def _seen_from(folder: Path, value: Any, meant: Callable[[Path], bool]) -> Any:
    """A path, or a name that is a path beside the file, as seen from here; all else as it is."""
    if isinstance(value, list):
        return [_seen_from(folder, each, meant) for each in value]
    if not isinstance(value, str):
        return value
    path = folder / Path(value).expanduser()
    return str(path) if meant(path) else value


def _hint(wrong: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown path or variable: the one that was likely meant."""
    paths = {path.rpartition(".")[2].removeprefix(PREFIX): path for path in known}
    close = suggest(wrong.rpartition(".")[2].removeprefix(PREFIX), paths)
    return f"; did you mean {paths[close]}?" if close else ": `halka train --help` lists all"


def said(value: Any) -> dict[str, Any]:
    """A dataclass's fields as a file says them, wherever it will lie: paths are whole."""
    return {each.name: _plain(getattr(value, each.name), each.metadata.get("beside")) for each in fields(value)}


def _plain(value: Any, meant: Callable[[Path], bool] | None) -> Any:
    if isinstance(value, tuple):
        return [_plain(each, meant) for each in value]
    if isinstance(value, Path) or (meant is not None and isinstance(value, str) and meant(Path(value))):
        return str(Path(value).absolute())
    return value
