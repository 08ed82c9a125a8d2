"""Names on the Hugging Face hub to folders, of bases and adapters: what the client's cache holds, else fetched."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from halka.util.errors import HalkaError

ADAPTER = re.compile(r"(?P<name>\w[\w.-]*/(?P<last>\w[\w.-]*))(?:@(?P<revision>\w[\w./-]*))?")
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
    what: str,
    hint: str,
    fetch: bool = True,
) -> Path:
    """The client's folder of that name, with the files that match: what its cache holds, else downloaded.

    `check` raises ValueError for a folder that is not whole. `what` (a model, an adapter) and `hint` are for messages.
    Raises ValueError for what is not there, is gated, or cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download

    def snapshot(*, local: bool) -> Path:
        found = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(files),
            ignore_patterns=list(left_out),
            local_files_only=local,
        )
        return Path(found)

    try:
        folder = snapshot(local=True)
        check(folder)
        return folder
    except (errors.LocalEntryNotFoundError, ValueError):  # nothing there, or only a part
        if not fetch:
            raise HalkaError(
                f"{name} is not on this machine: no folder, and not in the hub client's cache (load_base fetches it); "
                f"{hint}"
            ) from None
    try:
        return snapshot(local=False)
    except errors.GatedRepoError as error:
        reason = f"{name} is gated: accept its terms on https://huggingface.co/{name}, then log in with `hf auth login`"
        raise HalkaError(reason) from error
    except errors.RevisionNotFoundError as error:
        raise HalkaError(f"{name} has no revision {revision!r} on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise HalkaError(f"{name} is neither a folder nor {what} on the hub; {hint}") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        cause = error.__cause__ or error
        raise HalkaError(
            f"{name} is no folder, is not in the hub client's cache, and the hub cannot be reached "
            f"({type(cause).__name__}: {cause}); {hint}"
        ) from error


def is_adapter_name(source: str | Path) -> bool:
    """Whether `org/name`, or `org/name@revision`, is meant for the hub: nothing here is called so."""
    path = Path(source)
    return ADAPTER.fullmatch(str(source)) is not None and not path.exists() and not Path(path.parts[0]).exists()


def adapter_name(source: str | Path) -> str:
    """What an adapter is called if nobody says otherwise: its folder's name, or its own on the hub."""
    if is_adapter_name(source):
        found = ADAPTER.fullmatch(str(source))
        assert found is not None
        return found["last"]
    return Path(source).resolve().name


def adapter_folder(source: str | Path, *, allow_pickle: bool = False) -> Path:
    """The folder itself, or that of `org/name` or `org/name@revision` on the hub; pickles stay there unless asked for.

    Raises ValueError as `from_hub` does, and for an adapter that has no safetensors there.
    """
    if not is_adapter_name(source):
        return Path(source)
    found = ADAPTER.fullmatch(str(source))
    assert found is not None
    wanted = [*ADAPTER_FILES, *(PICKLES if allow_pickle else [])]

    def check(folder: Path) -> None:
        if not (folder / "adapter_config.json").is_file():
            raise HalkaError(f"{source} holds no adapter_config.json on the hub: it is no adapter")
        if not any(each for ending in wanted[1:] for each in folder.glob(ending) if each.name != "README.md"):
            raise HalkaError(
                f"{source} has no safetensors on the hub, only pickles if anything: allow_pickle (--allow-pickle) "
                "fetches these, and torch's loader of weights alone reads them"
            )

    folder = from_hub(
        *(found["name"], found["revision"]),
        files=wanted,
        left_out=SUBFOLDERS,
        check=check,
        what="an adapter",
        hint="an adapter is a folder, or a name on the hub such as org/adapter or org/adapter@revision",
    )
    check(folder)
    return folder
