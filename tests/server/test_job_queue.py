"""The queue of jobs: each runs once, in its order; whoever is killed, what is shown is true and the next begins."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from full_disk import file_limit, room_for
from halka.server.apart import environment
from halka.server.jobs.folder import LOCK, JobFolder, JobRequest, jobs_in
from halka.server.jobs.queue import JobQueue
from halka.server.storage import Storage
from halka.util.errors import DamagedFolderError, HalkaError
from halka.util.openmp import BRIEFLY, SHARED

PATIENT = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with open("begun", "a") as file: file.write("x")
while not pathlib.Path("go").exists(): time.sleep(0.01)
print('{"good": 1}')
"""
"""Waits for the file `go`, and says in `begun` how often it has begun."""
STEADY = """
import pathlib, time
from halka.cli.training_run import stop_signals
with stop_signals():
    pathlib.Path("begun").write_text("x")
    while not pathlib.Path("go").exists(): time.sleep(0.01)
"""
"""Takes signals as a training does, in a step that lasts until there is the file `go`."""
BEGUN = {"running", "stopping"}


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


@pytest.fixture
def jobs(tmp_path) -> Iterator[Path]:
    """A folder of jobs; those that still run at the end are let go."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    yield folder
    for job in jobs_in(folder):
        if job.alive:
            (job.path / "go").touch()
            wait_for(lambda job=job: not job.alive)


@pytest.fixture
def queue(jobs, tmp_path) -> JobQueue:
    return JobQueue(lambda: [jobs], tmp_path / "lock")


def new(jobs: Path, program: str = PATIENT, **request) -> JobFolder:
    command = [sys.executable, "-c", program]
    return JobFolder.new(jobs, JobRequest(**{"kind": "evaluate", "settings": {}, "command": command, **request}), {})


def begun(job: JobFolder) -> int:
    """How often its command has begun."""
    path = job.path / "begun"
    return len(path.read_text()) if path.exists() else 0


def finish(queue: JobQueue, job: JobFolder) -> str:
    (job.path / "go").touch()
    wait_for(lambda: not job.alive)
    queue.look()
    return job.state()


def test_who_asks_again_ends_a_training_at_once(jobs, queue):
    job = new(jobs, STEADY)
    queue.look()
    wait_for(lambda: begun(job))
    job.stop()
    assert job.state() == "stopping"
    job.stop()
    wait_for(lambda: not job.alive)
    assert job.state() == "stopped"


def test_a_stop_just_before_the_command_begins_is_not_lost(jobs):
    """Its process has looked whether to stop, and opens what the command will write to: here pipes, which wait."""
    job = new(jobs)
    for name in ("output.json", "log.txt"):
        os.mkfifo(job.path / name)
    lock = job.claim()
    assert lock is not None
    program = [sys.executable, "-m", "halka.server.jobs.process", str(job.path), str(lock)]
    process = subprocess.Popen(program, env=environment(os.environ), pass_fds=[lock], start_new_session=True)
    os.close(lock)
    with (job.path / "output.json").open("rb"):
        job.stop()
        with (job.path / "log.txt").open("rb"):
            wait_for(lambda: job.state() == "stopped")
    assert process.wait() == 0


def test_jobs_run_one_at_a_time_in_their_order(jobs, queue):
    first, second = new(jobs), new(jobs)
    assert (first.state(), second.state()) == ("queued", "queued")
    assert queue.look() == 1
    wait_for(lambda: begun(first))
    assert queue.look() == 1
    assert (first.state(), second.state()) == ("running", "queued")
    assert finish(queue, first) == "done"
    assert json.loads((first.path / "output.json").read_text()) == {"good": 1}
    wait_for(lambda: begun(second))
    assert finish(queue, second) == "done"
    assert queue.look() == 0
    assert (begun(first), begun(second)) == (1, 1)


def test_a_job_runs_with_the_interpreter_that_is_there_now(jobs, queue):
    """The one that it was queued with may have gone with an older environment."""
    command = ["/gone/with/an/older/environment/python", "-c", PATIENT]
    job = JobFolder.new(jobs, JobRequest(kind="evaluate", settings={}, command=command), {})
    queue.look()
    wait_for(lambda: begun(job))
    assert finish(queue, job) == "done"


@pytest.mark.skipif(sys.platform != "linux", reason="the system has no such scores")
def test_a_job_and_its_command_end_before_the_server(jobs, queue):
    job = new(jobs, 'print(open("/proc/self/oom_score_adj").read())')
    queue.look()
    wait_for(lambda: job.state() == "done")
    assert (job.path / "output.json").read_text().strip() == "1000"


def test_tenants_take_turns_however_many_jobs_one_has(tmp_path):
    """Also where it removes what has run, and another server looks on."""
    folders = [tmp_path / tenant for tenant in ("acme", "bolt", "cora")]
    acme, bolt, cora = folders
    quick = "print('{}')"
    waiting = [
        new(acme, quick),
        new(acme, quick),
        new(bolt, quick),
        new(acme, quick),
        new(cora, quick),
        new(cora, quick),
    ]
    order = []
    while waiting:
        assert JobQueue(lambda: folders, tmp_path / "lock").look() == 1
        (job,) = [job for job in waiting if job.state() != "queued"]
        wait_for(lambda job=job: job.written()["state"] == "done" and not job.alive)
        order.append(job.path.parent.name)
        waiting.remove(job)
        shutil.rmtree(job.path)
    assert order == ["acme", "bolt", "cora", "acme", "cora", "acme"]


def test_turns_are_taken_also_among_jobs_that_start_at_once(jobs, tmp_path):
    other = tmp_path / "other"
    many, one = [new(jobs), new(jobs), new(jobs)], new(other)
    assert JobQueue(lambda: [jobs, other], tmp_path / "lock", at_once=2).look() == 2
    assert [job.state() for job in (*many, one)] == ["running", "queued", "queued", "running"]
    (one.path / "go").touch()
    wait_for(lambda: not one.alive)


def test_several_may_run_at_once(jobs, tmp_path):
    queue = JobQueue(lambda: [jobs], tmp_path / "lock", at_once=2)
    made = [new(jobs) for _ in range(3)]
    assert queue.look() == 2
    wait_for(lambda: begun(made[0]) and begun(made[1]))
    assert [job.state() for job in made] == ["running", "running", "queued"]
    assert JobQueue(lambda: [jobs], tmp_path / "lock", at_once=0).look() == 0


def test_two_servers_start_no_job_twice(jobs, tmp_path):
    made = [new(jobs) for _ in range(3)]
    queues = [JobQueue(lambda: [jobs], tmp_path / "lock") for _ in range(4)]
    for _ in range(5):
        for queue in queues:
            assert queue.look() <= 1
    wait_for(lambda: begun(made[0]))
    assert [job.state() for job in made] == ["running", "queued", "queued"]
    assert sum(map(begun, made)) == 1


def test_a_job_survives_the_server_and_a_new_one_knows(jobs, tmp_path):
    made = [new(jobs), new(jobs)]
    server = f"""
import pathlib, sys, time
from halka.server.jobs.queue import JobQueue
queue = JobQueue(lambda: [pathlib.Path({str(jobs)!r})], pathlib.Path({str(tmp_path / "lock")!r}))
while True: queue.look(); print("looked", flush=True); time.sleep(0.05)
"""
    process = subprocess.Popen([sys.executable, "-c", server], stdout=subprocess.PIPE, env=environment(os.environ))
    with process:
        wait_for(lambda: begun(made[0]))
        process.kill()
    assert [job.state() for job in made] == ["running", "queued"]
    queue = JobQueue(lambda: [jobs], tmp_path / "lock")
    assert queue.look() == 1
    assert [job.state() for job in made] == ["running", "queued"]
    assert finish(queue, made[0]) == "done"
    wait_for(lambda: begun(made[1]))
    assert finish(queue, made[1]) == "done"
    assert [begun(job) for job in made] == [1, 1]


@pytest.mark.parametrize("whole", [True, False], ids=["with its command", "its process alone"])
def test_a_killed_job_is_interrupted_and_the_next_begins(jobs, queue, whole):
    first, second = new(jobs), new(jobs)
    queue.look()
    wait_for(lambda: begun(first))
    assert first.process is not None
    (os.killpg if whole else os.kill)(first.process, signal.SIGKILL)
    if not whole:  # its command is still at work: nothing else may begin
        assert queue.look() == 1
        assert (first.state(), second.state()) == ("running", "queued")
        (first.path / "go").touch()
    wait_for(lambda: not first.alive)
    assert first.state() == "interrupted"
    queue.look()
    wait_for(lambda: begun(second))
    assert begun(first) == 1, "nobody begins an interrupted job but who resumes it"
    first.resume()
    assert first.state() == "queued"
    assert finish(queue, second) == "done"
    wait_for(lambda: begun(first) == 2)
    assert finish(queue, first) == "done"


def test_a_stopped_job_can_be_resumed(jobs, queue):
    job = new(jobs)
    queue.look()
    wait_for(lambda: begun(job))
    job.stop()
    assert job.state() in ("stopping", "stopped")
    wait_for(lambda: not job.alive)
    assert job.state() == "stopped"
    with pytest.raises(HalkaError, match="is stopped: it cannot be stopped"):
        job.stop()
    assert queue.look() == 0
    job.resume()
    queue.look()
    wait_for(lambda: begun(job) == 2)
    assert finish(queue, job) == "done"
    with pytest.raises(HalkaError, match="is done: only what was stopped"):
        job.resume()


def test_a_job_that_is_resumed_begins_when_its_state_is_written(jobs, queue):
    """A queue that looks amid the resuming neither begins it nor takes it for ended."""
    job = new(jobs)
    job.stop()
    with room_for(10):
        job.resume()
    assert job.state() == "stopped"
    job.write(state="queued")
    assert (job.state(), queue.look()) == ("stopped", 0)
    (job.path / "stop").unlink()
    assert queue.look() == 1
    assert finish(queue, job) == "done"


def test_a_job_that_cannot_write_that_it_runs_does_not_begin_each_second(jobs, queue, tmp_path):
    job = new(jobs)
    with file_limit(10):  # its process inherits it
        assert queue.look() == 1
    wait_for(lambda: not job.alive)
    assert (job.state(), begun(job)) == ("queued", 0)
    assert queue.look() == 0
    another = JobQueue(lambda: [jobs], tmp_path / "lock")  # of a server that begins anew
    assert another.look() == 1
    wait_for(lambda: begun(job))
    assert finish(another, job) == "done"


def test_a_job_begins_only_where_its_tenant_has_room(jobs, queue, tmp_path):
    """What it writes counts once it is there: else jobs that wait could write any number of bytes."""
    storage = Storage((jobs,), tmp_path / "reserved")
    request = JobRequest("evaluate", {}, [sys.executable, "-c", PATIENT], storage=storage.described())
    job = JobFolder.new(jobs, request, {}, limit=100)
    queue.look()
    wait_for(lambda: job.written()["state"] == "failed")
    wait_for(lambda: not job.alive)
    assert "100 bytes of adapters, documents and jobs is the limit" in job.written()["error"]
    assert begun(job) == 0
    job.resume(limit=10_000)
    assert queue.look() == 1
    wait_for(lambda: begun(job))
    assert finish(queue, job) == "done"


def test_a_job_that_waits_can_be_stopped(jobs, queue):
    job = new(jobs)
    job.stop()
    assert job.state() == "stopped"
    assert queue.look() == 0
    job.resume()
    assert queue.look() == 1
    job.stop()  # perhaps before its process has begun
    wait_for(lambda: not job.alive)
    assert job.state() == "stopped"


def test_a_failed_job_says_why(jobs, queue):
    fails = "import sys; print('loading', file=sys.stderr); sys.exit('Error: the data holds nothing')"
    killed = "import os; os.kill(os.getpid(), 9)"
    for program, reason in ((fails, "the data holds nothing"), (killed, "killed by SIGKILL: perhaps memory ran out")):
        job = new(jobs, program)
        queue.look()
        wait_for(lambda job=job: job.written()["state"] == "failed")
        wait_for(lambda job=job: not job.alive)
        assert reason in job.written()["error"]
        assert queue.look() == 0


def test_a_resumed_job_says_nothing_of_an_earlier_attempt(jobs, queue):
    again = (
        "import pathlib, sys; sys.exit(3) if pathlib.Path('again').exists() else None; pathlib.Path('again').touch(); "
    )
    job = new(jobs, f"{again}sys.exit('Error: the data holds nothing')")
    for reason in ("the data holds nothing", "the job ended with code 3"):
        queue.look()
        wait_for(lambda: job.written()["state"] == "failed")
        wait_for(lambda: not job.alive)
        assert job.written()["error"] == reason
        assert ("holds nothing" in job.messages()) == (reason == "the data holds nothing")
        job.resume()
        assert job.messages() == ""


def test_a_damaged_or_foreign_folder_keeps_no_other_job_away(jobs, queue, tmp_path):
    damaged, good = new(jobs), new(jobs)
    (damaged.path / "state.json").write_text("{")
    with pytest.raises(DamagedFolderError, match=f"state.json of {damaged.id} is damaged"):
        damaged.state()
    elsewhere = new(tmp_path / "others")
    (jobs / "job-link").symlink_to(elsewhere.path)
    (jobs / ".job-hidden").mkdir()
    assert {job.id for job in jobs_in(jobs)} == {damaged.id, good.id}
    assert queue.look() == 1
    wait_for(lambda: begun(good))
    assert elsewhere.state() == "queued"
    (damaged.path / "job.json").unlink()


@pytest.mark.parametrize("content", ["{", None], ids=["damaged", "lost"])
@pytest.mark.parametrize("file", ["state.json", "job.json"])
def test_a_job_that_is_damaged_while_it_runs_counts_and_can_be_stopped(jobs, queue, file, content):
    damaged, good = new(jobs), new(jobs)
    queue.look()
    wait_for(lambda: begun(damaged))
    (damaged.path / file).unlink()
    if content is not None:
        (damaged.path / file).write_text(content)
    assert queue.look() == 1
    assert (damaged.state(), good.state()) == ("running", "queued")
    damaged.stop()
    wait_for(lambda: not damaged.alive)
    queue.look()
    wait_for(lambda: begun(good))
    assert damaged.process is not None
    with damaged.path.joinpath("log.txt").open() as log:
        assert ("is damaged" in log.read()) == (file == "state.json"), "its process could not write how it ended"


def test_who_claims_a_job_forgets_the_process_that_it_had(jobs, queue):
    job = new(jobs)
    queue.look()
    wait_for(lambda: begun(job))
    job.stop()
    wait_for(lambda: not job.alive)
    assert job.process is not None
    lock = job.claim()
    assert job.process is None
    os.close(lock)


def test_a_job_of_another_container_is_not_stopped_by_an_id_that_means_another_process(jobs, queue):
    job = new(jobs)
    queue.look()
    wait_for(lambda: begun(job))
    lock = job.path / LOCK
    own = lock.read_text()
    lock.write_text(f"{own.split()[0]} pid:[1]")
    with pytest.raises(HalkaError, match="runs in another container: stop it at the server there"):
        job.stop()
    assert job.state() == "running"
    lock.write_text(own)
    assert finish(queue, job) == "done"


@pytest.mark.parametrize("file", ["state.json", "job.json"])
def test_the_log_names_a_damaged_job_once_and_again_where_it_changes(jobs, queue, caplog, file):
    damaged = new(jobs)
    (damaged.path / file).write_text("{}")
    for _ in range(3):
        assert queue.look() == 0
    assert [record.message for record in caplog.records] == [
        f"{damaged.id} is passed over: {file} of {damaged.id} is damaged: remove the job"
    ]
    (damaged.path / file).write_text("[]")
    os.utime(damaged.path / file, ns=(1, 1))  # clocks of some systems' files tick only now and then
    queue.look()
    assert len(caplog.records) == 2
    good = new(jobs)
    assert queue.look() == 1
    assert finish(queue, good) == "done"


def test_a_queue_that_cannot_be_read_now_is_read_later(jobs, tmp_path, caplog):
    async def watch() -> None:
        failing, looks = True, 0

        def folders() -> list[Path]:
            nonlocal looks
            looks += 1
            if failing:
                raise KeyError("state")
            return [jobs]

        queue = JobQueue(folders, tmp_path / "lock")
        job = new(jobs)
        queue.start()
        while looks < 2:
            await asyncio.sleep(0.02)
        failing = False
        while job.state() == "queued":
            await asyncio.sleep(0.02)
        assert queue.alive
        await queue.aclose()
        assert not queue.alive

    asyncio.run(asyncio.wait_for(watch(), 120))
    assert len(caplog.records) == 1


def test_a_job_gets_no_secrets_and_no_settings_of_the_server():
    keys = ("HALKA_API_KEY", "VLLM_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    variables = {"HALKA_SERVE_BASE": "a", "HALKA_TRAIN_RANK": "8", "PATH": "/bin", **dict.fromkeys(keys, "secret")}
    assert {*environment(variables)} - {*BRIEFLY, SHARED} == {"PATH", "HF_HUB_OFFLINE"}


def test_a_job_is_there_with_its_data_or_not_at_all(jobs, tmp_path):
    files = {"data.jsonl": tmp_path / "rows.jsonl", "settings.yaml": tmp_path / "chosen.yaml"}
    for file in files.values():
        file.write_text("{}")
    request = JobRequest("train", {"name": "a"}, ["true"])
    job = JobFolder.new(jobs, request, files)
    assert {path.name for path in job.path.iterdir()} == {"job.json", "state.json", "data.jsonl", "settings.yaml"}
    assert not (tmp_path / "rows.jsonl").exists()
    with pytest.raises(FileNotFoundError):
        JobFolder.new(jobs, request, {"data.jsonl": tmp_path / "nothing"})
    assert [path.name for path in jobs.iterdir()] == [job.id]
