"""`probe_on`: the probes on one node of a Ray cluster, whose hardware they measure; this module is their program."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from halka.advisor.advice_folder import COLLECTION, HELD_OUT, PLAN, TRAIN, AdviceFolder
from halka.advisor.evidence import Evidence, from_json
from halka.advisor.probed_base import Progress
from halka.advisor.request import Request
from halka.advisor.runner import probe
from halka.advisor.words import PROBES
from halka.estimating import estimate
from halka.rag.collection import Collection
from halka.rag.roots import files_at
from halka.rag.sources import listed, taken_in
from halka.util.errors import HalkaError
from halka.util.files import LOCK, write_bytes
from halka.util.process import run_process
from halka.util.ray_cluster import News, RayCluster
from halka.util.ray_node import Program

ADVICE, REQUEST, LOG = "advice", "request.json", "log.txt"  # in the program's folder
EVIDENCE = "evidence.json"


def probe_on(
    address: str,
    request: Request,
    folder: str | Path,
    *,
    minutes: float = 10.0,
    skip: Sequence[str] = (),
    progress: Progress = lambda stage, text: None,
) -> Evidence:
    """`probe` as a task on a Ray cluster, one task since all probes share the base: its results come to `folder`.

    The node gets examples, documents and the probes that are finished; it needs the base by the same name or path.
    Speed, memory and GPU are the node's. Raises HalkaError as `probe` and `RayCluster` do, and where the probes end
    without a result.
    """
    kept = AdviceFolder(folder)
    with kept.alone():
        documents, files = _carried(request.documents)
        for name in (PLAN, *(f"{name}.json" for name in PROBES)):
            if (kept.path / name).exists():
                files[f"{ADVICE}/{name}"] = (kept.path / name).read_bytes()
        form = {"dtype": request.dtype, "quantize": request.quantize}
        size = estimate(request.base, "lora", batch_size=1, length=8, **form)
        asked = {"request": asdict(replace(request, documents=documents)), "minutes": minutes, "skip": [*skip]}
        cluster = RayCluster(address, shared={REQUEST: json.dumps(asked).encode()})
        try:
            memory = size.base_bytes + size.process
            cluster.start("", Program("the advice", __name__, (), files, LOG, memory, gpu_memory=size.base_bytes))
            news = _followed(cluster, progress)
        finally:
            cluster.close()
        for name, content in news.files.items():
            own = Path(name)
            if own.parts[0] == ADVICE and not {COLLECTION, LOCK, ".."} & {*own.parts}:  # which are the node's
                write_bytes(kept.path / own.relative_to(ADVICE), content)
        if news.code != 0:
            log = news.files.get(LOG, b"").decode(errors="replace").strip()
            raise HalkaError((log.splitlines() or [news.text])[-1])
        if request.documents:
            indexing = taken_in(Collection(kept.path / COLLECTION), *listed(request.documents), kept.path)
            for number, event in enumerate(indexing, start=1):
                progress("documents", f"{number} indexed here: {event.document}")
        evidence = from_json(Evidence, json.loads(news.files[EVIDENCE]))
        moved = {str(Path(ADVICE, name)): str(kept.path / name) for name in (TRAIN, HELD_OUT)}
        flags = tuple(moved.get(flag, flag) for flag in evidence.subject.flags)
        return replace(evidence, subject=replace(evidence.subject, out=str(kept.path), flags=flags))


def _carried(documents: Sequence[str]) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """The documents' paths in the program's folder, and their files by theirs."""
    paths: list[str] = []
    files: dict[str, bytes] = {}
    for number, document in enumerate(documents):
        root = Path(document).expanduser().resolve()
        paths.append(f"documents/{number}/{root.name}")
        for file in files_at(root):
            files[Path(paths[-1], file.relative_to(root)).as_posix()] = file.read_bytes()
    return tuple(paths), files


def _followed(cluster: RayCluster, progress: Progress) -> News:
    """Report what the program does until it is over."""
    while True:
        _, news = cluster.report()
        if news.kind == "over":
            return news
        if news.kind == "line":
            line = json.loads(news.text)
            progress(line["stage"], line["text"])
        else:
            progress("cluster", news.text if news.kind == "lost" else f"the probes measure {news.node}")


def main() -> int:
    """Run the probes of the request in the program's folder; an error of the user's is the last line of the log."""
    asked = json.loads(Path(REQUEST).read_bytes())
    request, minutes, skip = from_json(Request, asked["request"]), asked["minutes"], asked["skip"]

    def progress(stage: str, text: str) -> None:
        print(json.dumps({"stage": stage, "text": text}), flush=True)

    try:
        evidence = probe(request, ADVICE, minutes=minutes, skip=skip, progress=progress)
    except HalkaError as error:
        print(error, file=sys.stderr)
        return 2
    Path(EVIDENCE).write_text(json.dumps(asdict(evidence)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    run_process(main)
