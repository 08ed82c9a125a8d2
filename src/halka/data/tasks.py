"""A task by its name: a shipped one, a YAML file, or a Python file."""

import runpy
from pathlib import Path

from halka.data import support
from halka.data.task import Task
from halka.util.errors import DataError

TASK_FILES = (".yaml", ".yml", ".py")


def is_task_file(path: Path) -> bool:
    """Whether `path` is a file that `load_task` reads; a folder of a shipped task's name is none."""
    return path.suffix in TASK_FILES and path.is_file()


def load_task(name_or_path: str | Path) -> Task:
    """The shipped task "support", a task's `.yaml` file, or a `.py` file that defines `task() -> Task` (it is run).

    Raises:
        ValueError: it is none of these, or the file is not right.
        OSError: a file is missing or may not be opened.
    """
    path = Path(name_or_path)
    if str(name_or_path) == "support":
        return support.task()
    if path.suffix in (".yaml", ".yml"):
        return Task.from_yaml(path)
    if path.suffix != ".py":
        raise DataError(f"task {str(name_or_path)!r} is unknown. Name support, a .yaml file or a .py file.")
    try:
        make = runpy.run_path(str(path)).get("task")
        if not callable(make):
            raise DataError(f"{path}: defines no function task(). Add one that returns a halka.data.task.Task.")
        task = make()
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise DataError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(task, Task):
        raise DataError(f"{path}: task() returned a {type(task).__name__}, not a halka.data.task.Task.")
    return task
