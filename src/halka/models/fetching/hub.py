"""Bases and adapters on the Hugging Face hub: their folder in the hub client's cache, downloaded if need be."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from halka.util.errors import HalkaError

ADAPTER = re.compile(r"(?P<name>\w[\w.-]*/(?P<last>\w[\w.-]*))(?:@(?P<revision>\w[\w./+-]*))?")
ADAPTER_FILES = ["*.json", "*.safetensors", "README.md"]
PICKLES = ["*.bin"]
SUBFOLDERS = ["*/*"]


def from_hub(
    name: str,
    revision: str | None,
    *,
    files: Sequence[str],
    left_out: Sequence[str],
    check: Callable[[Path], object],
    thing: str,
    hint: str,
    fetch: bool = True,
) -> Path:
    """The folder of that name in the hub client's cache, downloaded if need be and if `fetch` allows it.

    files, left_out   patterns of the files to download, and of those to leave
    check             raises HalkaError for a folder that is incomplete
    thing, hint       for messages: "a model" or "an adapter", and the way out

    Raises HalkaError for a name that the hub does not have, a gated one, and a hub that cannot be reached; and as
    `check` does of what the hub has.
    """
    from huggingface_hub import errors, snapshot_download

    def snapshot(*, local: bool) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(files),
                ignore_patterns=list(left_out),
                local_files_only=local,
            )
        )

    try:
        folder = snapshot(local=True)
        check(folder)
        return folder
    except errors.HFValidationError as error:
        raise HalkaError(f"{name} is no folder, and no name that the hub could have ({error}); {hint}") from error
    except (errors.LocalEntryNotFoundError, HalkaError):  # not in the cache, or incomplete
        if not fetch:
            raise HalkaError(
                f"{name} is not on this machine: no folder, and not in the hub client's cache (`hf download {name}` "
                f"fetches it); {hint}"
            ) from None
    try:
        folder = snapshot(local=False)
    except errors.GatedRepoError as error:
        reason = f"{name} is gated: accept its terms on https://huggingface.co/{name}, then log in with `hf auth login`"
        raise HalkaError(reason) from error
    except errors.RevisionNotFoundError as error:
        raise HalkaError(f"{name} has no revision {revision!r} on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise HalkaError(
            f"{name} is neither a folder nor {thing} on the hub, or it is private: `hf auth login` logs in; {hint}"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        cause = error.__cause__ or error
        raise HalkaError(
            f"{name} is no folder, is not in the hub client's cache, and the hub cannot be reached "
            f"({type(cause).__name__}: {cause}); {hint}"
        ) from error
    check(folder)
    return folder


def adapter_parts(source: str | Path) -> re.Match[str] | None:
    """The parts of `org/name` or `org/name@revision` on the hub; None for others, and where `org` is a path here."""
    parts = ADAPTER.fullmatch(str(source))
    return None if parts is None or Path(Path(source).parts[0]).exists() else parts


def adapter_folder(parts: re.Match[str], *, allow_pickle: bool = False) -> Path:
    """The folder of these parts of a name on the hub, downloaded if need be.

    Pickles are downloaded only if `allow_pickle` says so. Raises HalkaError as `from_hub` does, and for an adapter
    without safetensors.
    """
    wanted = [*ADAPTER_FILES, *(PICKLES if allow_pickle else [])]

    def check(folder: Path) -> None:
        if not (folder / "adapter_config.json").is_file():
            raise HalkaError(f"{parts[0]} holds no adapter_config.json on the hub: it is not an adapter")
        if not any(file.name != "README.md" for pattern in wanted[1:] for file in folder.glob(pattern)):
            raise HalkaError(
                f"{parts[0]} has no safetensors on the hub: allow_pickle (--allow-pickle) downloads pickles, if any, "
                "and torch reads them with weights_only"
            )

    return from_hub(
        *(parts["name"], parts["revision"]),
        files=wanted,
        left_out=SUBFOLDERS,
        check=check,
        thing="an adapter",
        hint="an adapter is a folder, or a name on the hub such as org/adapter or org/adapter@revision",
    )
