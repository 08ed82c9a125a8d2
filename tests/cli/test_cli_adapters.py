"""`halka adapters`: show, convert, and a store of adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from commands import failure, halka, parsed
from contract import disturb
from halka import LoRA, adapt, load_base, save


def test_adapters_show(here):
    found = parsed("adapters show run/adapter")
    assert found["method"]["name"] == "lora"
    assert found["parameters"] == found["card"]["parameters"]
    assert [(each["name"], each["shape"], each["count"]) for each in found["tensors"]][:2] == [
        ("lora_A", [4, 64], 12),
        ("lora_A", [4, 96], 2),
    ]
    shown = halka("adapters show run/adapter").stdout
    for told in ("lora (rank 4", "data", "steps 6", "validation_loss", "4 × 64"):
        assert told in shown


def test_a_home_is_expanded_where_the_shell_does_not(here, monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv("USERPROFILE", str(Path.cwd()))
    halka("adapters add run/adapter a --store=~/kept")
    assert [Path(row["folder"]) for row in parsed("adapters list --store=~/kept")] == [Path("kept/a/1").absolute()]
    assert parsed("evaluate --adapter a=~/run --data data.jsonl --base base --limit 1")


def test_an_adapters_readme_is_a_model_card(here):
    folder = Path(shutil.copytree("run", "published"), "adapter")
    assert Path(parsed("adapters readme published --name acme/support --json")["file"]) == folder / "README.md"
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag, card.data.base_model) == ("peft", "text-generation", None)
    assert card.data.tags == ["halka", "lora"]
    for part in ('halka.open("acme/support", base="…")', "| rank | 4 |", "| steps | 6 |", "| validation\\_loss |"):
        assert part in card.text
    assert "from peft" not in card.text  # the hub could not find the base, which was a folder
    assert f"{folder / 'README.md'} is there: pass --force" in failure("adapters readme published")
    assert "--name support is no name of the hub's: write ORG/NAME" in failure(
        "adapters readme published --name support --force"
    )

    record = json.loads((folder / "halka.json").read_text())
    record["base"]["name"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    (folder / "halka.json").write_text(json.dumps(record))
    halka("adapters readme published --force")
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    for part in ('halka.open("ORG/published")', 'AutoPeftModelForCausalLM.from_pretrained("ORG/published")'):
        assert part in card.text


def test_adapters_convert_to_another_tools_folder_and_back(here):
    model = adapt(*load_base("base", dtype="float32"))
    model.add("a", LoRA(rank=4, targets=("attn.qv",)))
    disturb(model, "a")
    save(model, "a", "ours")
    told = parsed("adapters convert ours theirs --base base --to adapterhub")
    assert (told["from"], told["to"], told["method"]) == ("peft", "adapterhub", "lora")
    assert sorted(each.name for each in Path("theirs").iterdir()) == [
        "adapter.safetensors",
        "adapter_config.json",
        "halka.json",
    ]
    assert parsed("adapters show theirs")["parameters"] == model.adapter("a").count()
    halka("adapters convert theirs back --base base")
    before, after = (load_file(f"{each}/adapter_model.safetensors") for each in ("ours", "back"))
    assert all(after[key].equal(tensor) for key, tensor in before.items())

    torch.save(load_file("theirs/adapter.safetensors"), "theirs/pytorch_adapter.bin")
    for name in ("adapter.safetensors", "halka.json"):
        Path("theirs", name).unlink()
    assert "as a pickle (pytorch_adapter.bin)" in failure("adapters convert theirs again --base base")
    halka("adapters convert theirs again --base base --allow-pickle")
    use = 'generate --base base --dtype float32 --max-new-tokens 4 "What?" --adapter'
    assert "as a pickle (pytorch_adapter.bin)" in failure(f"{use} theirs")
    assert parsed(f"{use} theirs --allow-pickle --json")["answer"] == parsed(f"{use} ours --json")["answer"]
    halka("merge theirs --base base --allow-pickle --force")
    assert load_file("again/adapter_model.safetensors").keys() == before.keys()


def test_another_chat_template_is_refused_unless_allowed(here):
    model = adapt(*load_base("base", dtype="float32"))
    model.add("a", LoRA(rank=4, targets=("attn.qv",)))
    disturb(model, "a")
    save(model, "a", "ours")
    Path("other").mkdir()
    for file in Path("base").iterdir():
        Path("other", file.name).write_bytes(file.read_bytes())
    template = Path("other/chat_template.jinja")
    template.write_text(template.read_text() + "{# another #}")
    for command in (
        "generate Why? --base other --adapter ours --max-new-tokens 1",
        "adapters convert ours theirs --base other --to adapterhub",
    ):
        assert "was trained with another chat template" in failure(command)
        halka(f"{command} --allow-other-template")


def test_adapters_convert_refuses_by_name(here):
    assert "'hub' is not one of 'peft', 'adapterhub'" in failure("adapters convert run/adapter x --base base --to hub")
    assert "AdapterHub's library cannot adapt attn.o in llama" in failure(
        "adapters convert run/adapter x --base base --to adapterhub"
    )
    assert not Path("x").exists()


def test_adapters_show_finds_a_name_in_a_store(here, monkeypatch):
    halka("adapters add run/adapter mine --store kept")
    halka("adapters add run/adapter mine --store kept")
    found = parsed("adapters show mine --store kept --version 1")
    assert found["folder"].endswith("1")
    assert found["tensors"] == parsed("adapters show run/adapter")["tensors"]
    assert "--version is of an adapter in a store" in failure("adapters show run/adapter --version 1")
    assert "nope" in failure("adapters show nope --store kept")
    monkeypatch.setenv("HALKA_STORE", "kept")
    assert parsed("adapters show mine") == parsed("adapters show mine@2 --store kept")
    assert parsed("adapters show run")["folder"] == "run/adapter"


def test_adapters_show_reads_pefts_folders_and_finds_damage(here):
    import shutil

    folder = Path("mine")
    shutil.copytree("run/adapter", folder)
    (folder / "halka.json").unlink()
    shown = halka("adapters show mine").stdout
    assert "No Card (halka.json)" in shown
    assert "LORA" in shown
    assert parsed("adapters show mine")["method"] == "LORA"
    card = json.loads(Path("run/adapter/halka.json").read_text())
    (folder / "halka.json").write_text(json.dumps({**card, "base": {}}))
    assert "unnamed" in halka("adapters show mine").stdout
    (folder / "adapter_model.safetensors").write_bytes(b"damaged")
    assert "mine/adapter_model.safetensors is damaged" in failure("adapters show mine")


def test_a_store_of_adapters(here):
    assert "support, version 1" in halka("adapters add run/adapter support --store adapters").stdout
    assert parsed("adapters add run/adapter support --store adapters")["version"] == 2
    halka("adapters add run/adapter other --store adapters")
    assert "support: live" in halka("adapters tag support live --store adapters").stdout
    assert "2 adapters in adapters" in halka("adapters list --store adapters").stdout
    (found,) = parsed("adapters list --store adapters --tag live")
    assert (found["name"], found["version"], found["versions"], found["method"]) == ("support", 2, 2, "lora")
    assert parsed("adapters remove support@1 --store adapters") == {"name": "support", "versions": [2]}
    (Path("adapters") / "other" / "1" / "adapter_config.json").write_text("{")
    assert "1 of 2 versions are damaged" in halka("adapters verify --store adapters", code=1).stderr
    (Path("adapters") / "other" / "1" / "halka.json").write_text("{")
    listed = halka("adapters list --store adapters")
    assert "1 adapter in adapters" in listed.stdout
    assert "other: " in listed.stderr
    halka("adapters remove other --store adapters")
    assert parsed("adapters verify --store adapters") == {"versions": 1, "damaged": [], "cleaned": 0}
    assert "there is no folder nope" in failure("adapters list --store nope")
    assert "cannot be a name in a store" in failure("adapters add run/adapter ../x --store adapters")
    assert "holds no adapter 'supp': did you mean support" in failure("adapters tag supp x --store adapters")
