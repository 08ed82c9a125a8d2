// What may be done with a job as it is: stop it, resume it, use its settings again, delete it.
import { useEffect, useState } from "preact/hooks";
import { Button } from "../parts/button";
import { Confirm } from "../parts/confirm";
import { useAction } from "../parts/loading";
import { Failure } from "../parts/notice";
import { go } from "../router";
import { words } from "../words/words";
import { deleteJob, ENDED, resumeJob, stopJob, type Job } from "./jobs";

/** The address of a form that asks for what this training was asked for. */
function againOf({ name, settings, files }: Job): string {
  const { settings: chosen = {}, validation } = settings;
  const share = typeof validation === "number" && validation < 1;
  const held = share ? String(validation) : files.validation !== undefined || validation !== undefined ? "file" : "";
  return `/train?${new URLSearchParams({ settings: JSON.stringify(chosen), held, name: name ?? "" })}`;
}

/** `changed`: it is queued again; `home`: where its list is. */
export function Buttons({ job, changed, home = "/train" }: { job: Job; changed: () => void; home?: string }) {
  const w = words.value.jobs;
  const { busy, failure, run } = useAction();
  const [asks, setAsks] = useState(false);
  const [stops, setStops] = useState(""); // the status that it still has: another click would stop it at once
  useEffect(() => setStops(""), [job.status]);
  const ended = ENDED.includes(job.status);
  return (
    <>
      {!ended && (
        <Button kind="danger" icon="stop" busy={busy || stops === job.status} onClick={() => run(() => stopJob(job.id).then(() => setStops(job.status)))}>{job.status === "stopping" ? w.stopNow : w.stop}</Button>
      )}
      {ended && job.status !== "done" && (
        <Button kind="primary" icon="again" busy={busy} onClick={() => run(() => resumeJob(job.id).then(changed))}>{w.resume}</Button>
      )}
      {job.kind === "train" && <Button icon="settings" onClick={() => go(againOf(job))}>{w.reuse}</Button>}
      {ended && <Button kind="quiet" icon="trash" label={w.remove} onClick={() => setAsks(true)} />}
      <Failure error={failure} />
      {asks && (
        <Confirm title={w.remove} hint={w.removeHint} yes={w.remove} onYes={() => deleteJob(job.id)} onDone={() => go(home)} onClose={() => setAsks(false)} />
      )}
    </>
  );
}
