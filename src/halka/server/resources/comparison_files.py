"""What `halka compare` wrote, below folders that the operator names: found by plain names, no link is followed.

comparisons/NAME/
  summary.json              what the methods came to, of which runs
  runs/KEY.json             each run's measurement
  work/KEY/predictions.jsonl   the answers of a run, where they are still there
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, cast

from halka.server.errors import ApiError
from halka.util.errors import DamagedFolderError
from halka.util.files import is_portable_name

SUMMARY, RUNS, PREDICTIONS = "summary.json", "runs", "predictions.jsonl"
MOST = 500  # runs of a comparison
LARGE = 4 << 20  # bytes of a file of JSON, or of a line
KEPT = 8 << 20  # bytes of a comparison's runs up to which they are kept once they are read
LETTERS = 20_000  # of a text that is shown


@dataclass(frozen=True)
class Comparison:
    """One folder that `halka compare` wrote, or that looks so."""

    name: str
    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What the methods came to. Raises DamagedFolderError for what is none."""
        summary = _json(self.folder / SUMMARY)
        if not isinstance(summary, dict) or not isinstance(summary.get("rows"), list):
            raise DamagedFolderError(f"{SUMMARY} of {self.name} is not what `halka compare` writes: run it again")
        return summary

    def runs(self) -> dict[str, dict[str, Any]]:
        """The measurements by their keys, as many as are shown, without those of other settings and damaged ones."""
        own, files = None, list[tuple[Path, int, int]]()
        with suppress(DamagedFolderError, OSError):
            own = self.summary.get("runs")
        paths = _inside(self.folder / RUNS)
        for path in islice((path for path in paths if not isinstance(own, list) or path.stem in own), MOST):
            with suppress(OSError):
                if path.suffix == ".json":
                    files.append((path, (status := path.lstat()).st_mtime_ns, status.st_size))
        small = sum(size for *_, size in files) <= KEPT
        return runs_of(tuple(files)) if small else runs_of.__wrapped__(tuple(files))

    def answers(self, start: int, count: int) -> list[dict[str, Any]]:
        """Items of the test split from `start` on, each with what the methods answered.

        Of each method it is the run with the lowest seed; where its answers are gone, the samples in its measurement.
        """
        chosen = dict[str, tuple[str, dict[str, Any]]]()
        for key, run in self.runs().items():
            label = _label(run)
            if (
                run.get("purpose") == "final"
                and run.get("samples")
                and _seed(run) < _seed(chosen.get(label, ("", {}))[1])
            ):
                chosen[label] = key, run
        items = list[dict[str, Any]]()
        for label, (key, run) in chosen.items():
            for number, answer in enumerate(islice(self._answers(key, run), start, start + count)):
                if number == len(items):
                    shown = {"prompt": answer["prompt"], "reference": answer["reference"]}
                    items.append({"item": start + number, **shown, "answers": []})
                items[number]["answers"].append({"label": label, "prediction": answer["prediction"]})
        return items

    def _answers(self, key: str, run: Mapping[str, Any]) -> Iterator[dict[str, str]]:
        """A run's answers, in the order of the test split."""
        folder = self.folder / "work" / key
        if not any(path.is_symlink() for path in (folder.parent, folder)) and _is_file(folder / PREDICTIONS):
            yield from map(_answer, _lines(folder / PREDICTIONS))
        else:
            samples = run["samples"] if isinstance(run["samples"], list) else ()
            yield from (_answer(sample) for sample in samples if isinstance(sample, dict))


@lru_cache(maxsize=8)
def runs_of(files: tuple[tuple[Path, int, int], ...]) -> dict[str, dict[str, Any]]:
    """The measurements in files, each a path, the time of its last change and its bytes. Nobody changes them."""
    runs = dict[str, dict[str, Any]]()
    for path, *_ in files:
        with suppress(DamagedFolderError, OSError):
            if isinstance(run := _json(path), dict):
                runs[path.stem] = run
    return runs


def comparisons_in(roots: Sequence[Path]) -> list[Comparison]:
    """Those below these folders, by name; a root may be one itself. Of two of one name the first counts."""
    comparisons = dict[str, Comparison]()
    for root in (Path(os.path.realpath(root)) for root in roots):
        for folder in [root, *_inside(root)]:
            usable = is_portable_name(folder.name) and not folder.is_symlink() and _is_file(folder / SUMMARY)
            if usable:
                comparisons.setdefault(folder.name, Comparison(folder.name, folder))
    return sorted(comparisons.values(), key=lambda comparison: comparison.name)


def comparison_named(roots: Sequence[Path], name: str) -> Comparison:
    """Raises ApiError if there is none of that name."""
    for comparison in comparisons_in(roots):
        if comparison.name == name:
            return comparison
    raise ApiError(
        404, f"there is no comparison {name[:100]!r}: GET /v1/comparisons lists those there are", param="name"
    )


def _inside(folder: Path) -> list[Path]:
    """What is in a folder, by name; nothing where it is not there, or a link."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(folder.iterdir())


def _is_file(path: Path) -> bool:
    with suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def _open(path: Path) -> Any:
    """A plain file, opened. Raises FileNotFoundError where there is a link, or something else, in its place."""
    if not _is_file(path):
        raise FileNotFoundError(path)
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")


def _json(path: Path) -> Any:
    """Raises DamagedFolderError for a file that is too large, or no JSON."""
    with _open(path) as file:
        content = file.read(LARGE + 1)
    try:
        if len(content) <= LARGE:
            return json.loads(content)
    except (ValueError, RecursionError):
        pass
    raise DamagedFolderError(f"{path.name} is no JSON of at most {LARGE} bytes")


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects that a file's lines are; a damaged line is one without texts."""
    with _open(path) as file:
        while line := file.readline(LARGE):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            yield cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _answer(value: Mapping[str, Any]) -> dict[str, str]:
    """An answer's texts, of a prediction or a sample."""
    references = value.get("references")
    reference = references[0] if isinstance(references, list) and references else value.get("reference")
    texts = {"prompt": value.get("prompt"), "reference": reference, "prediction": value.get("prediction")}
    return {name: str(text or "")[:LETTERS] for name, text in texts.items()}


def _label(run: Mapping[str, Any]) -> str:
    method = run.get("method")
    return str((method.get("label") or method.get("name")) if isinstance(method, dict) else method)


def _seed(run: Mapping[str, Any]) -> float:
    seed = run.get("seed")
    return seed if isinstance(seed, int | float) else float("inf")
