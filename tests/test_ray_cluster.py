"""Studies and advice on a Ray cluster of two nodes on this machine, which are real; the runs' program is not."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from halka.advisor import Request, probe
from halka.advisor.on_ray import probe_on
from halka.data.task import load_task
from halka.studies.compare import ExperimentPlan, measurements, run, runner, write_outputs
from halka.studies.experiment import Experiment
from halka.studies.needs import needs_of
from halka.studies.on_ray import OnRay, task_files
from halka.studies.runner import Event
from halka.util.errors import HalkaError
from halka.util.ray_cluster import RayCluster, _Attempt
from halka.util.ray_connection import RayConnection
from halka.util.ray_gpus import TIMEOUT, GPUs
from halka.util.ray_node import Program
from runs_for_tests import a_run, base_and_task, written_task
from serving_for_tests import InProcess, Running, make_base, make_store, open_service
from staged_runs import Stage, is_alive, staged, within_seconds

LORA = {"method": "lora", "label": "lora", "lrs": (0.1, 0.2), "rank": 4}
IA3 = {"method": "ia3", "label": "ia3", "lrs": (0.01,)}
FIRST = "ia3, lr 0.01, seed 0"
SMALL = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
"""Of a node."""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[tuple[Stage, Any]]:
    """A stage, and a cluster whose two workers have a core each and the stage's program."""
    utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: pip install 'halka[ray]'")
    folder = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch, staged(folder) as stage:
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        alone = {"include_log_monitor": False, "no_monitor": True}  # without what nobody here reads
        cluster = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL, **alone})
        for _ in range(2):
            cluster.add_node(wait=False, num_cpus=1, **SMALL)
        cluster.wait_for_nodes(timeout=120)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield stage, cluster
        cluster.shutdown()
        gc.collect()


def experiment(*methods: dict, **changes) -> Experiment:
    settings = {"name": "test", "task": "support", "methods": methods, "seeds": (0, 1), "train": {"steps": 8}}
    return Experiment(**settings | {"search_beyond": 0, **changes})


def events_of(plan: Experiment, folder: Path) -> Iterator[Event]:
    place = OnRay(RayCluster("ray"), "program", folder)
    return runner(plan, folder, host=place).go(ExperimentPlan(plan).due)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "runs").iterdir()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_six_runs_on_two_workers_of_which_one_is_killed(nodes, tmp_path):
    stage, cluster = nodes
    plan, seen = experiment(LORA, IA3), []
    if stage.notes():
        stage.forget()  # what other tests ran on these nodes
    stage.plan(**{"ia3_0.01_0": {"sleep": 60}})
    with within_seconds(240):
        for event in events_of(plan, tmp_path / "ray"):
            seen.append(event)
            if (event.kind, event.run, event.step) == ("step", FIRST, 2) and len(cluster.worker_nodes) == 2:
                stage.plan()
                (node,) = [node for node in cluster.worker_nodes if event.node.endswith(f"({node.node_id[:6]})")]
                cluster.remove_node(node, allow_graceful=False)
    kinds = Counter(event.kind for event in seen)
    assert (kinds["lost"], kinds["done"], kinds["failed"], kinds["started"]) == (1, 6, 0, 7)
    (lost,) = [event for event in seen if event.kind == "lost"]
    assert lost.run == FIRST
    assert "was lost (NodeDiedError): it begins anew, for the second time" in lost.message
    assert len({event.node for event in seen if event.kind == "started"}) == 2
    ended = Counter(note["name"] for note in stage.notes("ends"))
    assert len(ended) == 6
    assert set(ended.values()) == {1}
    assert Counter(stage.names())["ia3 0.01 0 final"] == 2
    list(run(plan, tmp_path / "here"))
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "here")
    own, other = (write_outputs(plan, tmp_path / place) for place in ("ray", "here"))
    for ours, theirs in ((own.table, other.table), (own.summary, other.summary), (own.report, other.report)):
        assert ours.read_text() == theirs.read_text()
    assert {event.kind for event in events_of(plan, tmp_path / "ray")} == {"skipped"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_fails_by_itself_is_recorded_and_not_tried_again(nodes, tmp_path):
    stage, _ = nodes
    stage.plan(**{"ia3_0.01_0": {"error": "ValueError: no"}, "ia3_0.01_1": {"kill": True}})
    before = len(stage.names())
    with within_seconds(240):
        seen = Counter(event.kind for event in events_of(experiment(IA3), tmp_path))
    assert (seen["failed"], seen["lost"], len(stage.names()) - before) == (2, 0, 2)
    errors = sorted(result["error"] for result in measurements(tmp_path))
    assert errors[0] == "ValueError: no"
    assert errors[1].startswith("the process ended with -9 ")
    assert errors[1].endswith("here it goes wrong")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_who_stops_leaves_no_process_behind(nodes, tmp_path):
    stage, _ = nodes
    stage.plan(ia3={"sleep": 60})
    with within_seconds(240):
        stream = events_of(experiment(IA3, seeds=(5,)), tmp_path)
        assert [next(stream).kind for _ in range(3)] == ["started", "step", "step"]
        stream.close()
        pid = stage.notes()[-1]["pid"]
        while is_alive(pid):
            time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_program_gets_its_data_and_no_node_is_waited_for_that_will_not_come(nodes, tmp_path):
    task = load_task(written_task(tmp_path, metrics="exact_match"))
    cluster = RayCluster("ray", shared=task_files("sums", task), timeout=0)
    code = (
        "import sys\nfrom halka.data.task import load_task\nopen('out.txt', 'w').write(repr(load_task(sys.argv[1])))\n"
    )
    probe = Program("probe", "probe", ("task/sums.py",), {"probe.py": code.encode()}, "log.txt")
    try:
        with within_seconds(240):
            cluster.start("a", probe)
            while (news := cluster.report()[1]).kind != "over":
                pass
            assert (news.code, news.files) == (0, {"out.txt": repr(task).encode(), "log.txt": b""})
            large = Program("LoRA r16", "probe", (), {}, "log.txt", memory=10**15)
            with pytest.raises(
                HalkaError, match=r"LoRA r16 takes 1 core, 1000000\.0 GB, and no node of the Ray cluster"
            ):
                cluster.start("b", large)
    finally:
        cluster.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_programs_lines_come_in_their_order(nodes, tmp_path):
    """Calls of an actor, as a program's letters are, overtake each other; where its mailbox is lost, so are some."""
    code = f"import pathlib, time\nwhile not pathlib.Path({str(tmp_path)!r}, 'end').exists():\n    time.sleep(0.01)\n"
    cluster = RayCluster("ray")
    try:
        with within_seconds(240):
            cluster.start("a", Program("probe", "probe", (), {"probe.py": code.encode()}, "log.txt"))
            news = [cluster.report()[1]]
            for place, text in ((3, "c"), (1, "a"), (1, "a"), (2, "b"), (3, "c"), (6, "e"), (5, "d")):
                cluster.ray.get(cluster.post.put.remote((0, place, "line", text)))
            news += [cluster.report()[1] for _ in range(3)]
            (tmp_path / "end").touch()
            news += [cluster.report()[1] for _ in range(3)]
    finally:
        cluster.close()
    assert [one.kind for one in news] == ["begun", *["line"] * 5, "over"]
    assert [one.text for one in news[:-1]] == [news[0].node, *"abcde"], "one was lost, and none comes twice"
    assert len({one.node for one in news}) == 1


def test_a_letter_that_does_not_come_is_waited_for_for_a_while():
    attempt = _Attempt("a", Program("probe", "probe", (), {}, "log.txt"), 0)
    for place in (0, 2, 3):
        attempt.take(place, ("line", str(place)))
    assert [*attempt.in_turn()] == [("line", "0")]
    assert [*attempt.in_turn()] == []
    attempt.take(1, ("line", "1"))
    assert [text for _, text in attempt.in_turn()] == ["1", "2", "3"]
    attempt.take(5, ("line", "5"))
    assert [text for _, text in attempt.in_turn(patience=0)] == ["5"]
    attempt.take(4, ("line", "4"))
    assert [*attempt.in_turn(patience=0)] == []
    assert not attempt.early


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_loses_its_worker_three_times_is_given_up(nodes):
    code = b"import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(60)\n"
    cluster = RayCluster("ray")
    try:
        with within_seconds(240):
            cluster.start("a", Program("probe", "probe", (), {"probe.py": code}, "log.txt"))
            news = [cluster.report()[1]]
            while news[-1].kind != "over":
                news.append(cluster.report()[1])
    finally:
        cluster.close()
    assert [one.text.partition("was ")[2] for one in news if one.kind == "lost"] == [
        "lost (WorkerCrashedError): it begins anew, for the second time",
        "lost (WorkerCrashedError): it begins anew, for the third time",
    ]
    assert news[-1].text.endswith("was lost (WorkerCrashedError), as 2 others before")
    assert (news[-1].code, news[-1].files) == (None, {})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_advice_is_that_of_this_machine(nodes, tmp_path):
    """The node is this machine, so hardware and advice are the same."""
    base_and_task(tmp_path)
    task = load_task(tmp_path / "task.yaml")
    request = Request(str(tmp_path / "base"), task.train, (), "accuracy", memory=10**9, dtype="float32")
    skip, stages = ("strength", "knowledge", "learnability"), []
    here = probe(request, tmp_path / "here", skip=skip)
    with within_seconds(240):
        there = probe_on("ray", request, tmp_path / "ray", skip=skip, progress=lambda *news: stages.append(news))
    assert replace(there, subject=here.subject) == here
    assert there.subject.out == str(tmp_path / "ray")
    assert there.subject.flags[:2] == ("--data", str(tmp_path / "ray" / "train.jsonl"))
    assert stages[0][0] == "cluster"
    assert {"cleanliness", "fit"} <= {stage for stage, _ in stages}
    kept = (tmp_path / "ray" / "fit.json").read_bytes()
    assert kept == (tmp_path / "here" / "fit.json").read_bytes()
    with pytest.raises(HalkaError, match="there is no probe nothing: choose from"):
        probe_on("ray", request, tmp_path / "ray", skip=("nothing",))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_server_answers_by_replicas_of_which_one_is_killed(nodes, tmp_path):
    """One of two dies under an answer, which goes on at the other; nothing is left when the server ends."""
    _, cluster = nodes
    base = make_base(tmp_path / "tiny")
    store = make_store(tmp_path / "store", base)
    body = {"model": "lora", "prompt": "The capital of", "max_tokens": 400, "ignore_eos": True, "temperature": 0.7}
    seeds = range(3, 8)
    with InProcess.open(base, store, tmp_path / "alone") as alone:
        expected = [alone.client.post("/v1/completions", json={**body, "seed": seed}).json() for seed in seeds]
    for _ in range(2 - len(cluster.worker_nodes)):  # another test may have killed one
        cluster.add_node(num_cpus=1, **SMALL)
    with (
        within_seconds(400),
        Running(base, store, tmp_path / "data", on="ray", replicas="2") as server,
        httpx.Client(base_url=server.url, timeout=100) as client,
    ):
        client.post("/v1/completions", json={**body, "max_tokens": 1})
        replicas = server.service.holder
        while None in (states := replicas.channel.states()):
            time.sleep(0.1)
        pids = {state.name: state.pid for state in states}
        busy = list[str]()
        for seed, whole in zip(seeds, expected, strict=True):
            with client.stream("POST", "/v1/completions", json={**body, "seed": seed, "stream": True}) as stream:
                lines = stream.iter_lines()
                events = [next(lines)]
                busy = [name for name, seen in [*replicas.placement.seen.items()] if seen.calls]
                for name in busy:
                    os.kill(pids[name], signal.SIGKILL)
                events += lines
            answers = [json.loads(event[6:])["choices"] for event in events if event.startswith("data: {")]
            assert "".join(choice["text"] for (choice,) in answers) == whole["choices"][0]["text"]
            if busy:  # else this answer had come before anybody could look
                break
        assert len(busy) == 1
        assert client.get("/v1/adapters/lora").json()["loaded"]
        assert client.get("/v1/adapters/prefix").json()["loaded"] is False
    ray = pytest.importorskip("ray")
    assert not ray.is_initialized()
    for more, reason in (({}, r"9 replicas of 1 core, 2\.5 GB each have"), ({"adapter_memory": 1e6}, "1000000.5 GB")):
        with pytest.raises(HalkaError, match=f"{reason}.* no room on the cluster"):
            open_service(base, store, tmp_path / "data", on="ray", replicas="9", **more)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_run_goes_to_a_gpu_that_is_too_small_for_it(nodes, tmp_path):
    """Two nodes with GPUs that are not there, whose driver is a script."""
    _, cluster = nodes
    added = []
    for gigabytes in (24, 80):
        driver = tmp_path / str(gigabytes) / "nvidia-smi"
        driver.parent.mkdir()
        driver.write_text(f"#!/bin/sh\necho {gigabytes}000\necho 81000\n")
        driver.chmod(0o755)
        path = os.pathsep.join([str(driver.parent), os.environ["PATH"]])
        added.append(cluster.add_node(num_cpus=1, num_gpus=1, env_vars={"PATH": path}, **SMALL))
    rays = RayCluster("ray", timeout=0)
    try:
        with within_seconds(240):
            for number in range(3):
                rays.start(
                    str(number), Program("probe", "probe", (), {"probe.py": b""}, "log.txt", gpu_memory=50 * 10**9)
                )
            news = [rays.report()[1] for _ in range(6)]
        assert [one.kind for one in news].count("over") == 3
        assert {one.node[-7:-1] for one in news} == {added[1].node_id[:6]}, "the large one alone"
        with pytest.raises(HalkaError, match=r"LoRA takes 1 core, 1 GPU of 90\.0 GB, and no node .* 1 GPU of 25\.2 GB"):
            rays.start("", Program("LoRA", "probe", (), {}, "log.txt", gpu_memory=90 * 10**9))
    finally:
        rays.close()
        for node in added:
            cluster.remove_node(node)


# ── without a cluster ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cluster_that_is_none_is_refused_with_the_way_out(monkeypatch):
    def nowhere(*_: object, **__: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(HalkaError, match=r"pip install 'halka\[ray\]'"):
        RayCluster("ray")
    absent = SimpleNamespace(is_initialized=lambda: False, init=nowhere)
    monkeypatch.setitem(sys.modules, "ray", absent)
    with pytest.raises(HalkaError, match=r"--on: 'slurm' is no cluster: write ray, or ray://HOST:10001"):
        RayCluster("slurm")
    with pytest.raises(HalkaError, match=r"Could not find any running Ray instance\): start one by `ray start --head`"):
        RayCluster("ray")
    with pytest.raises(HalkaError, match="client port"):
        RayCluster("ray://there:10001")


def test_it_is_rays_client_that_is_connected_whoever_named_the_address(monkeypatch):
    named, connected = list[str](), SimpleNamespace(is_connected=lambda: "ray://there:10001" in named)
    fake = SimpleNamespace(is_initialized=lambda: False, init=lambda address, **_: named.append(address))
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.util.client", SimpleNamespace(ray=connected))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not RayConnection("ray").remote
    monkeypatch.setenv("RAY_ADDRESS", "ray://there:10001")
    assert RayConnection("ray").remote
    assert named == ["auto", "ray://there:10001"]


def test_a_cluster_without_a_processor_is_left(monkeypatch):
    calls = list[str]()
    empty = SimpleNamespace(is_initialized=lambda: False, nodes=list, shutdown=lambda: calls.append("shutdown"))
    empty.init = lambda *_, **__: calls.append("init")
    monkeypatch.setitem(sys.modules, "ray", empty)
    with pytest.raises(HalkaError, match="no node of the Ray cluster has a processor for tasks"):
        RayCluster("ray")
    assert calls == ["init", "shutdown"]


def test_a_gpu_that_answers_late_is_heard_then(monkeypatch):
    """And waited for no longer: the cluster is looked at every few seconds."""
    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: node)
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
    answered, waits = {"a", "c"}, list[tuple[list[str], float]]()

    def wait(tasks: list[str], timeout: float, **_: object) -> tuple[list[str], list[str]]:
        waits.append((tasks, timeout))
        return [task for task in tasks if task in answered], []

    def options(scheduling_strategy: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda: scheduling_strategy)

    ray = SimpleNamespace(
        remote=lambda _: SimpleNamespace(options=options), wait=wait, get={"a": 24, "b": 80, "c": 40}.get
    )
    gpus = GPUs(ray)
    assert [gpus.memory_of(["a", "b"]), gpus.memory_of(["a", "b"])] == [{"a": 24}] * 2
    assert gpus.memory_of(["b", "c"]) == {"c": 40}
    answered.add("b")
    assert [gpus.memory_of(["a", "b"]), gpus.memory_of(["b"])] == [{"a": 24, "b": 80}, {"b": 80}]
    assert [waited for waited in waits if waited[1]] == [(["a", "b"], TIMEOUT), (["c"], TIMEOUT)]


def test_a_runs_memory_is_what_the_estimator_predicts(tmp_path):
    base_and_task(tmp_path)
    task, one = load_task(tmp_path / "task.yaml"), a_run(tmp_path)
    alone, three, on_gpu = needs_of([one], task, False), needs_of([one] * 3, task, False), needs_of([one], task, True)
    assert alone is not None
    assert three is not None
    assert on_gpu is not None
    assert on_gpu.memory < alone.memory < three.memory < 1.2 * alone.memory
    assert alone.gpu_memory is None
    assert on_gpu.gpu_memory > 500e6, "CUDA's own"
    assert needs_of([a_run(tmp_path, base=str(tmp_path / "none"))], task, gpu=False) is None
