"""Every Python block in README and docs runs, every table comes from the results, every link leads somewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import halka
from halka.models.fetching import pull
from results_in_docs import PAGES, filled
from serving_for_tests import serving

ROOT = Path(__file__).parents[1]
BENGALI = ROOT / "README.bn.md"
DOCS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
ADD_A_METHOD = ROOT / "docs" / "add-a-method.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_bengali_readme_has_the_code_tables_and_pages_of_the_english_one():
    english, bengali = (page.read_text(encoding="utf-8") for page in (ROOT / "README.md", BENGALI))
    for pattern in (r"```.*?```", r"<!-- .*? -->", r"^## "):
        assert re.findall(pattern, bengali, re.DOTALL | re.M) == re.findall(pattern, english, re.DOTALL | re.M)
    assert {*re.findall(r"\]\((.*?)\)", bengali)} <= {*re.findall(r"\]\((.*?)\)", english), "README.md"}


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory) -> Path:
    """A cache whose smollm2-135m has its first two layers alone, and the rest as it is."""
    bases = tmp_path_factory.mktemp("cache") / "bases"
    bases.mkdir()
    (bases / "minilm-l6").symlink_to(pull("minilm-l6"))
    whole, small = pull("smollm2-135m"), bases / "smollm2-135m"
    shutil.copytree(whole, small, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((whole / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    tensors = load_file(whole / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not re.search(r"layers\.(?![01]\.)", name)}
    save_file(kept, small / "model.safetensors", metadata={"format": "pt"})
    return bases.parent


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")  # TRL's, of transformers
@pytest.mark.parametrize(
    "page", [page for page in DOCS if blocks(page, "python") and page != ADD_A_METHOD], ids=lambda page: page.name
)
def test_python_blocks_run(page, tmp_path, monkeypatch, small_cache):
    """A page's blocks in turn, in one namespace and an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HALKA_CACHE", str(small_cache))
    module = types.ModuleType("a_page_of_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look their names up
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), vars(module))


@pytest.mark.slow
def test_a_method_is_the_file_that_its_page_shows(tmp_path, small_cache):
    """In a package that has it the method is listed and works; one whose file has no first line is listed, too."""
    source, package = Path(halka.__file__).parent, tmp_path / "halka"
    (package / "methods").mkdir(parents=True)
    for path in source.iterdir():
        if path.name != "methods":
            (package / path.name).symlink_to(path)
    for path in (source / "methods").glob("*.py"):
        (package / "methods" / path.name).symlink_to(path)
    *parts, use = blocks(ADD_A_METHOD, "python")
    file = "\n\n".join(parts)
    (package / "methods" / "channel_scale.py").write_text(file, encoding="utf-8")
    undescribed = file.partition("\n")[2].replace('"channel_scale"', '"undescribed"')
    (package / "methods" / "undescribed.py").write_text(undescribed, encoding="utf-8")
    listed = (
        'from halka.cli import app\ntry:\n    app(["methods"])\nexcept SystemExit as end:\n    assert not end.code\n'
    )
    environment = {"PYTHONPATH": str(tmp_path), "HALKA_CACHE": str(small_cache), "COLUMNS": "200"}
    printed = subprocess.run(
        [sys.executable, "-c", listed + use],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert printed.returncode == 0, printed.stderr
    assert re.search(r"^channel_scale +0\.01 +Learned factors on keys", printed.stdout, flags=re.MULTILINE)
    assert re.search(r"^undescribed +0\.01 +ChannelScale *$", printed.stdout, flags=re.MULTILINE)
    assert "Adapter(ChannelScale(targets=" in printed.stdout


@pytest.mark.slow
def test_readme_serves(tmp_path, small_cache, monkeypatch):
    """README's lines for a server and its client; the adapter is not the demo's, which takes minutes."""
    (block,) = [block for block in blocks(ROOT / "README.md", "sh") if "curl" in block]
    (command,) = re.findall(r"^\.venv/bin/halka (serve .*)$", block, flags=re.MULTILINE)
    (curl,) = re.findall(r"^curl .*", block, flags=re.MULTILINE | re.DOTALL)
    assert "scripts/demo" in block
    monkeypatch.setenv("HALKA_CACHE", str(small_cache))
    model = halka.adapt(*halka.load_base("smollm2-135m"))
    model.add("support", halka.LoRA(rank=2))
    halka.AdapterStore(tmp_path / "halka-demo/adapters").save(model, "support")
    with serving(command.removeprefix("serve "), tmp_path) as (_, text):
        assert "HALKA_API_KEY" not in text
        address = re.search(r"127\.0\.0\.1:\d+", text)
        assert address is not None
        asked = curl.strip().replace("127.0.0.1:8000", address[0])
        answer = subprocess.run(["sh", "-c", f"{asked} -s"], capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(answer.stdout)["choices"][0]["message"]["role"] == "assistant"


def test_the_documented_data_task_and_experiment_are_read(tmp_path):
    from halka.data.examples import read_examples
    from halka.data.shapes import SHAPES
    from halka.data.task import KEYS, Task
    from halka.evaluation.metrics import FAMILIES, METRICS
    from halka.studies.experiment import Experiment, read_experiment

    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    (rows, tools), (task,) = blocks(ROOT / "docs" / "data.md", "jsonl"), blocks(ROOT / "docs" / "data.md", "yaml")
    (tmp_path / "tools.jsonl").write_text(tools)
    (calling,) = read_examples(tmp_path / "tools.jsonl")
    assert [message.role for message in calling.messages] == ["tools", "user", "assistant", "tool", "assistant"]
    assert calling.messages[2].calls
    (tmp_path / "test.jsonl").write_text(rows)
    assert len(read_examples(tmp_path / "test.jsonl").examples) == 2
    (tmp_path / "train.jsonl").write_text(rows * 10)
    (tmp_path / "task.yaml").write_text(task)
    assert Task.from_yaml(tmp_path / "task.yaml").primary == "json_exact"
    assert all(f"\n{key}: " in task for key in KEYS)
    assert re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE) == list(SHAPES)
    named = re.search(r"The metrics: (.*?), each with", page, flags=re.DOTALL)[1]
    families = {f"{family}:NAME" for family in FAMILIES}
    assert set(re.findall(r"`([\w:]+)`", named)) == {*METRICS, *families}
    (experiment,) = blocks(ROOT / "docs" / "compare.md", "yaml")
    (tmp_path / "experiment.yaml").write_text(experiment)
    assert read_experiment(tmp_path / "experiment.yaml").seeds == (0, 1, 2)
    told = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    assert all(f"{key}:" in told for key in Experiment.model_fields)


def test_the_ablation_in_the_docs_is_one(tmp_path):
    from halka.studies.ablation import read_ablation

    (ablation,) = blocks(ROOT / "docs" / "rag.md", "yaml")
    (tmp_path / "ablation.yaml").write_text(ablation)
    (tmp_path / "documents").mkdir()
    for name in ("more", "train", "validation", "test"):
        (tmp_path / f"{name}.jsonl").touch()
    assert read_ablation(tmp_path / "ablation.yaml").passages == 3


def sections() -> dict[str, str]:
    """What docs/cli.md has of every command, by its name."""
    pieces = re.split(r"^## (halka.*)$", (ROOT / "docs" / "cli.md").read_text("utf-8"), flags=re.M)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def unknown_flags(line: str) -> list[str]:
    """Flags of `halka COMMAND …` and `python benchmarks/NAME.py …`, in a line of a shell, that these do not have."""
    unknown = list[str]()
    for command in re.split(r" \| | && |; |, and ", re.sub(r"(?:^|\s)#.*", "", line)):
        script = re.search(r"python (benchmarks/\w+\.py)(.*)", command)
        own = re.search(r"(?:^|[\s/])halka(?= )((?: [a-z][a-z-]*)*)(.*)", command)
        if script is not None:
            flags, text = script[2], (ROOT / script[1]).read_text("utf-8")
        elif own is not None:
            names = [" ".join(["halka", *own[1].split()[:count]]) for count in (2, 1, 0)]
            flags, text = own[2], next(sections()[name] for name in names if name in sections())
        else:
            continue
        unknown += [flag for flag in re.findall(r" (--[\w-]+)", flags) if not re.search(rf"{flag}(?![\w-])", text)]
    return unknown


def shell_lines(page: Path) -> list[str]:
    """A page's commands: lines of its shells, joined where they go on, those of containers in YAML and in the text."""
    shells = [block for kind in ("sh", "bash", "console") for block in blocks(page, kind)]
    lines = [line for block in shells for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines() if line.strip()]
    for block in blocks(page, "yaml"):
        words = " ".join(re.findall(r"\b(?:command|args): \[(.*?)\]$", block, flags=re.M))
        lines += [re.sub(r'[,"]', "", words)] if words else []
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return lines + re.findall(r"`((?:halka|python) [^`]*)`", text)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_commands_have_the_flags_that_a_page_gives_them(page):
    assert {line: flags for line in shell_lines(page) if (flags := unknown_flags(line))} == {}


def test_flags_of_another_command_are_seen():
    assert unknown_flags("halka compare experiment.yaml -o results --on ray") == []
    assert unknown_flags("torchrun --nproc-per-node 4 -m halka compare experiment.yaml --shard --on ray") == ["--shard"]
    assert unknown_flags("halka keys add --data server && halka keys list --note x") == ["--note"]
    assert unknown_flags("python benchmarks/replicas.py --only speed --replica 2") == ["--replica"]


def test_every_line_of_what_was_not_run_has_a_command():
    rows = re.findall(r"^\| (?!what|---)(.*?) \| (.*) \|$", (ROOT / "docs" / "not-run.md").read_text("utf-8"), re.M)
    assert rows
    for what, shown in rows:
        assert re.search(r"`[^`]+`", shown) or shown.startswith("the same"), what


def test_shell_blocks_name_what_is_there():
    lines = [line for page in DOCS for block in blocks(page, "sh") for line in block.splitlines() if line.strip()]
    assert lines
    for line in lines:
        command = line.split("#")[0].split()
        if command and command[0].startswith("scripts/"):
            assert (ROOT / command[0]).is_file(), line
        elif command and not line.startswith(" "):
            assert command[0] in ("halka", ".venv/bin/halka", "python", "torchrun", "pip", "curl"), (
                f"who runs this? {line}"
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_what_the_results_say(page):
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, "run scripts/fix to write the tables anew"


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_map_names_every_package_and_nothing_that_is_not_there():
    """The map in docs/architecture.md has at most 40 rows, and every path on the page exists."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "halka"
    rows = re.findall(r"^\| `([\w/.]+)` \|", text, flags=re.MULTILINE)
    assert {f"{folder.name}/" for folder in package.iterdir() if (folder / "__init__.py").exists()} <= {*rows}
    assert len(rows) <= 40
    for path in re.findall(r"`([\w]+/[\w/]*(?:\.py)?)`", text):
        within = [folder / path for folder in (ROOT, package, package / "storage" / "formats")]
        assert any(each.exists() for each in within), f"docs/architecture.md names {path}"
