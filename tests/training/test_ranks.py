"""Two processes train as one does: losses, gradients, checkpoints; the base whole on each, or in parts."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

import halka
import ranks_for_tests as ranks
from halka.models.sharded import load_sharded_base, shard
from halka.training.ranks import BUCKET, Ranks, _buckets, dealt_device
from halka.training.shards import read_shards
from halka.util.errors import DamagedFolderError, HalkaError
from ranks_for_tests import CASES
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer
from training_for_tests import model_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave that went through all cases and went on with a run that one process had begun."""
    folder = tmp_path_factory.mktemp("two")
    tiny("mixtral").save_pretrained(folder / "mixture")
    chatml_tokenizer().save_pretrained(folder / "mixture")
    for name in ranks.RUNS:
        ranks.stopped(folder / f"{name} run", name, steps=3)
    for process in ranks.run(2, str(folder)):
        assert process.returncode == 0, process.stdout
    for name in ranks.RUNS:  # before a test goes on with them
        shutil.copytree(folder / f"{name} stopped", folder / f"{name} checkpoint")
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "trained.pt")


@pytest.fixture(scope="module", params=ranks.RUNS)
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Each run from its begin to its end in one process."""
    folder = tmp_path_factory.mktemp("straight")
    return {"name": request.param, "folder": folder, **ranks.resumed(folder, request.param)}


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_does(two: dict[str, Any], name: str):
    one, both = ranks.trained(CASES[name]), two[name]
    assert both["tokens"] == one["tokens"]
    assert both["base unchanged"]
    divided = CASES[name].shard and CASES[name].method.name == "full"
    assert both["share"] == pytest.approx(0.5, abs=0.01) if divided else both["share"] == 1
    close = 1e-5 if CASES[name].dtype == torch.float32 else 2e-2
    torch.testing.assert_close(both["losses"], one["losses"], rtol=close, atol=close)
    torch.testing.assert_close(both["validation"], one["validation"], rtol=close, atol=close)
    torch.testing.assert_close(both["norms"], one["norms"], rtol=close, atol=close)
    torch.testing.assert_close(both["gradients"], one["gradients"], rtol=close, atol=close)


def test_adapters_of_all_methods_are_trained_in_the_same_passes_and_written(
    two: dict[str, Any], folder: Path, tmp_path: Path
):
    alone = ranks.trained_together(tmp_path)
    torch.testing.assert_close(two["together"], [alone, alone], rtol=1e-5, atol=1e-5)
    for name in (*ranks.METHODS, *ranks.OTHERS):
        written, expected = (
            load_file(at / name / "adapter_model.safetensors") for at in (folder / "together", tmp_path)
        )
        assert all(tensor.numel() for tensor in written.values())
        torch.testing.assert_close(written, expected, rtol=1e-3, atol=1e-4)  # the optimiser divides small gradients


def test_a_mixture_is_loaded_in_parts_by_one_process_at_a_time(two: dict[str, Any], folder: Path):
    expected = {name: parameter.detach() for name, parameter in tiny("mixtral").named_parameters()}
    torch.testing.assert_close(two["mixture"]["weights"], expected, rtol=0, atol=0)
    turns = (folder / "turns").read_text(encoding="utf-8").splitlines()
    assert turns == ["0 begins", "0 ends", "1 begins", "1 ends"]


def test_what_the_first_process_refuses_is_refused_in_all_and_none_waits(two: dict[str, Any]):
    first, second = two["refusals"]
    assert first == second
    assert "differs from this one: lr was 0.001, is 0.002" in first[0]
    assert "holds a finished run" in first[1]


def test_a_full_disk_of_the_first_process_is_an_error_of_all_and_none_waits(two: dict[str, Any]):
    for name, errors in zip(ranks.RUNS, two["full disk"], strict=True):
        for file, (first, second) in errors.items():
            if name == "full" and file.startswith("checkpoint"):  # it is divided, so parts are written first
                assert re.search(r"process 0 cannot write to /.*/parts-1: \[Errno 27\] File too large$", first), first
            else:
                assert re.search(rf"File too large: '.*/{file.partition(' ')[0]}'$", first), first
            assert second == first


def test_shards_are_written_to_files_of_a_limited_size_and_read_again(two: dict[str, Any], folder: Path):
    torch.testing.assert_close(two["parts"]["read"], two["parts"]["written"], rtol=0, atol=0)
    files = sorted(path.name for path in (folder / "parts").iterdir())
    assert {name[:11] for name in files} == {"shard-00001", "shard-00002"}
    assert len(files) > 4


def test_shards_are_read_whole_by_one_process(two: dict[str, Any], folder: Path):
    tensors = {name: torch.zeros_like(tensor) for name, tensor in two["parts"]["written"].items()}
    read_shards(folder / "parts", tensors)
    torch.testing.assert_close(tensors, two["parts"]["written"], rtol=0, atol=0)


def test_shards_that_one_process_cannot_write_or_read_are_an_error_of_all(two: dict[str, Any], folder: Path):
    first, second = two["parts"]["full"]
    assert first == second
    assert first.endswith(f"process 1 cannot write to {folder / 'no room'}: [Errno 27] File too large")
    assert not (folder / "no room").exists()
    first, second = two["parts"]["unseen"]
    assert first == second
    assert first.startswith(f"the first process does not see in {folder / 'of 0 alone'} what the others wrote there (")
    first, second = two["parts"]["lacking"]
    assert first == second
    assert re.match(r"/.*/damaged is damaged \(of .* it has \[\(.*\)\]\): remove ", first), first


def test_a_checkpoint_that_lacks_shards_is_refused_before_anything_changes(folder: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(folder / "full checkpoint", run)
    model = ranks.model_of_run("full")
    before = ranks.whole_weights(model)
    for damage, reason in ((lambda path: path.write_bytes(b"\x00" * 100), "[Hh]eader"), (Path.unlink, "it has")):
        damage(run / "parts-3" / "shard-00001-model-00001-of-00001.safetensors")
        with pytest.raises(
            DamagedFolderError, match=rf"parts-3 is damaged \(.*({reason}).*remove {re.escape(str(run))} "
        ):
            halka.fit(model, "a", ranks.data(), ranks.RUN, validation=ranks.items(5, seed=2), folder=run)
    torch.testing.assert_close(ranks.whole_weights(model), before, rtol=0, atol=0)


def test_a_run_of_one_process_goes_on_with_two(two: dict[str, Any], straight: dict[str, Any]):
    resumed = two[f"{straight['name']} resumed"]
    torch.testing.assert_close(resumed, {key: straight[key] for key in resumed}, rtol=1e-5, atol=1e-5)


def test_a_run_of_two_processes_goes_on_with_one(folder: Path, straight: dict[str, Any]):
    parts = folder / f"{straight['name']} checkpoint" / "parts-3"
    assert parts.exists() == (straight["name"] == "full")
    run = folder / f"{straight['name']} stopped"
    (run / "parts-9").mkdir()  # left by a process that was killed as it wrote
    (run / "parts-list").mkdir()  # the user's own
    resumed = ranks.resumed(run, straight["name"])
    torch.testing.assert_close(resumed, {key: straight[key] for key in resumed}, rtol=1e-5, atol=1e-5)
    assert [path.name for path in run.glob("parts-*")] == ["parts-list"]


def test_the_first_process_alone_writes_the_run_and_writes_it_whole(folder: Path, straight: dict[str, Any]):
    run = folder / f"{straight['name']} run"
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == ranks.RUN["steps"]
    assert {path.name for path in (run / "adapter").iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "halka.json")
    }
    written, expected = (load_file(at / "adapter" / "adapter_model.safetensors") for at in (run, straight["folder"]))
    torch.testing.assert_close(written, expected, rtol=1e-5, atol=1e-5)


def test_a_full_copy_in_parts_is_saved_with_the_rows_of_its_own_labels(
    two: dict[str, Any], folder: Path, tmp_path: Path
):
    assert two["refusal"] == ranks.saved_of_fewer_labels(tmp_path / "one")
    written, expected = (
        load_file(at / "adapter_model.safetensors") for at in (folder / "of fewer labels", tmp_path / "one")
    )
    assert written["classifier.weight"].shape == (2, 64)
    torch.testing.assert_close(written, expected, rtol=0, atol=0)


def test_a_process_that_ends_in_an_evaluation_leaves_no_other_waiting(two: dict[str, Any], folder: Path):
    assert two["lost"].startswith("LostRankError: rank 0 lost the others (")
    assert {path.name for path in (folder / "lost run").iterdir()} <= {"run.yaml", ".lock"}  # no step is whole


def test_all_processes_decide_by_the_first_ones_score(two: dict[str, Any]):
    of_first, of_second = two["scores"]
    assert of_first[0] == of_first[1]
    assert of_first[0][0].startswith("a the score at step 1 is None, and no number")
    assert of_first[0][1:] == ["b", "b"]
    assert of_second == [["a", "b", "a", "b"]] * 2


def test_a_default_device_of_torchs_changes_nothing_of_what_is_exchanged(two: dict[str, Any]):
    exchanged = two["default device"]
    assert (exchanged["loss"], exchanged["computed"]) == (0.5, 1 << 31)
    assert exchanged["gradients"][0].tolist() == [3.0, 3.0, 3.0]
    assert exchanged["gradients"][1] is None
    assert [streamed["a"].tolist() for streamed in exchanged["streamed"]] == [[0.0, 1.0, 2.0]] * 2


def test_a_process_alone_loads_no_base_in_parts():
    with pytest.raises(HalkaError, match="a base in parts is for several processes"):
        load_sharded_base("smollm2-135m")


def test_buckets_are_of_one_kind_and_no_larger_than_allowed():
    sizes = (BUCKET // 2, BUCKET // 2, 1, BUCKET + 1, 5)
    tensors = [torch.empty(size, device="meta") for size in sizes]
    tensors.append(torch.empty(2, device="meta", dtype=torch.bfloat16))
    assert [[tensor.numel() for tensor in bucket] for bucket in _buckets(tensors)] == [
        *([BUCKET // 2, BUCKET // 2], [1], [BUCKET + 1], [5], [2])
    ]


def test_processes_of_torchrun_that_have_not_joined_do_not_train(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """All of them would write the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = model_for()
    ways = (
        lambda: halka.train(model, "a", ranks.items(), folder=tmp_path / "run"),
        lambda: halka.fit(model, "a", ranks.items(), folder=tmp_path / "run"),
        lambda: halka.train_many(model, [halka.Job("a", ranks.items(), folder=tmp_path / "run")]),
    )
    for way in ways:
        with pytest.raises(
            HalkaError, match=r"WORLD_SIZE=2, and each .* train within `with halka.training.joined_ranks"
        ):
            way()
    assert not (tmp_path / "run").exists()


def test_a_group_that_does_not_exchange_on_the_cpu_is_refused(tmp_path):
    dist.init_process_group("cuda:gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with pytest.raises(
            HalkaError, match=r"exchanges by cuda:gloo alone, .*init_process_group\(\"cpu:gloo,cuda:nccl"
        ):
            halka.fit(model_for(), "a", ranks.items())
    finally:
        dist.destroy_process_group()


def test_one_process_alone_exchanges_nothing():
    alone = Ranks.here()
    assert (alone.count, alone.first, alone.sum(2.5), alone.any(False), alone.from_first("x")) == (
        1,
        True,
        2.5,
        False,
        "x",
    )


@pytest.mark.parametrize(
    ("device", "gpus", "dealt"),
    [
        *((None, 2, ["cuda:0", "cuda:1"]), ("cuda", 3, ["cuda:0", "cuda:1"])),
        *((None, 0, ["cpu", "cpu"]), ("cpu", 2, ["cpu", "cpu"])),
    ],
)
def test_each_process_of_a_machine_gets_a_device(device: str | None, gpus: int, dealt: list[str]):
    assert [dealt_device(device, rank, 2, gpus) for rank in range(2)] == dealt


def test_one_process_of_a_machine_may_name_its_gpu():
    assert dealt_device("cuda:1", 0, 1, gpus=2) == "cuda:1"


@pytest.mark.parametrize(
    ("device", "gpus", "reason"),
    [
        *((None, 1, "2 processes need a GPU each, and this machine has 1"), ("cuda", 0, "this machine has 0")),
        *(("cuda:0", 2, "cuda:0 is one GPU, which 2 processes cannot share"), ("mps", 0, "on cuda or cpu alone")),
    ],
)
def test_a_device_that_processes_cannot_train_on_is_refused(device: str | None, gpus: int, reason: str):
    with pytest.raises(HalkaError, match=reason):
        dealt_device(device, 1, 2, gpus)


@pytest.mark.parametrize(
    ("architecture", "dtype", "wide"),
    [("t5", torch.float16, "DenseReluDense.wo.weight"), ("glm4_moe", torch.bfloat16, "e_score_correction_bias")],
)
def test_what_a_base_holds_in_float32_stays_so_in_parts(architecture: str, dtype: torch.dtype, wide: str, tmp_path):
    """As transformers loads it."""
    tiny(architecture).save_pretrained(tmp_path / "base")
    auto = AutoModelForSeq2SeqLM if architecture == "t5" else AutoModelForCausalLM
    whole = auto.from_pretrained(tmp_path / "base", dtype=dtype)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        base = tiny(architecture)
        shard(base, base.device, dtype, mesh=init_device_mesh("cpu", (1,)))
        parts, tensors = ({**dict(one.named_parameters()), **dict(one.named_buffers())} for one in (base, whole))
        assert {name: one.dtype for name, one in parts.items()} == {name: one.dtype for name, one in tensors.items()}
        kept = [name for name in tensors if name.endswith(wide)]
        assert {tensors[name].dtype for name in kept} == {torch.float32}
        for name in kept:
            one = parts[name].full_tensor() if isinstance(parts[name], DTensor) else parts[name]
            assert torch.equal(one, tensors[name])
    finally:
        dist.destroy_process_group()
