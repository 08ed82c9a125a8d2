// What came of a training: try it, and score it beside the base.
import { useState } from "preact/hooks";
import { baseName, isMissing } from "../../api";
import { curlUpload } from "../../jobs/commands";
import { listJobs, startJob, type Job, type Trained } from "../../jobs/jobs";
import { Button } from "../../parts/button";
import { curl } from "../../parts/curl";
import { FileField } from "../../parts/files";
import { useAction, useLoading } from "../../parts/loading";
import { Failure, Notice } from "../../parts/notice";
import { Terminal } from "../../parts/terminal";
import { link } from "../../router";
import { fill, short, words } from "../../words/words";
import { getAdapter, newestOf, versionedName, type Whole } from "../adapters/adapter";
import { KINDS } from "./draft";
import { Watching } from "./evaluation";

export function Outcome({ job, adapter }: { job: Job<Trained>; adapter: { name: string; version: number } }) {
  const w = words.value.train;
  const { name, version } = adapter;
  const { value, failure, again } = useLoading(() => Promise.all([baseName(), adapterOf(job, name, version)]), [name, version]);
  const [base, stored] = value ?? [null, undefined];
  if (stored === null) return <Notice kind="info"><p>{fill(w.gone, { name, version })}</p></Notice>;
  const newest = stored && newestOf(stored);
  const model = versionedName(name, version);
  const tryIt = `/playground?${new URLSearchParams([["model", base ?? ""], ["model", newest === version ? name : model]])}`;
  return (
    <>
      <Notice kind="done">
        <p>{fill(w.stored, { name, version })}{" "}{job.result && bestOfAll(job.result)}</p>
        <div class="row">
          {base && newest !== undefined && <a class="button primary" href={tryIt}>{w.tryIt}</a>}
          {newest !== undefined && <a class="button" href={`${link("adapters", name)}?version=${version}`}>{w.toAdapter}</a>}
        </div>
        {newest !== undefined && newest !== version && <p>{fill(words.value.adapters.newerAnswers, { n: newest, name: model })}</p>}
      </Notice>
      <Failure error={failure} again={again} />
      <Scoring adapter={model} training={job} />
    </>
  );
}

/** The adapter that a training stored; null where that was removed, though another may have its name and version. */
async function adapterOf({ created_at: since, ended_at: until }: Job, name: string, version: number): Promise<Whole | null> {
  try {
    const stored = await getAdapter(name, version);
    const trained = Date.parse(stored.trained_at ?? "") / 1000;
    return stored.error !== undefined || (since <= trained && trained <= (until ?? Infinity)) ? stored : null;
  } catch (error) {
    if (isMissing(error)) return null;
    throw error;
  }
}

/** Whose weights it has, where evaluations decided that. */
function bestOfAll({ score, validation_loss: loss, best_step: step }: Trained): string {
  const w = words.value.train;
  if (typeof score === "number") return fill(w.bestScoreOfAll, { score: short(score), step });
  return loss === null ? "" : fill(w.bestOfAll, { loss: short(loss), step });
}

/** The adapter's scores beside the base's: the last ones, and a way to more. */
function Scoring({ adapter, training }: { adapter: string; training: Job<Trained> }) {
  const w = words.value.train;
  const [file, setFile] = useState<File | null>(null);
  const [runs, setRuns] = useState(false);
  const { busy, failure, run } = useAction();
  const evaluations = useLoading(async () => {
    const own = (job: Job) => job.kind === "evaluate" && (job.settings["adapters"] as string[] | undefined)?.includes(adapter);
    const since = training.ended_at ?? 0; // what was asked before was of one that is deleted, whose name and version it has
    return (await listJobs()).filter((job) => own(job) && job.created_at >= since);
  }, [adapter, training.ended_at]);
  const scored = evaluations.value?.[0];
  const heldOut = Boolean(training.files.validation || training.settings["validation"]); // a task's are its own
  const asked = { kind: "evaluate", adapters: [adapter], with_base: true, ...(heldOut && !file ? { held_out_of: training.id } : {}) };
  const begin = () => run(() => startJob(asked, { data: file }).then(() => {
    setRuns(true);
    evaluations.again();
  }));
  const command = file || !heldOut
    ? curlUpload("/v1/jobs/upload", asked, { data: file?.name ?? "test.jsonl" })
    : curl("/v1/jobs", { json: asked });
  return (
    <section class="sheet stack">
      <h2>{w.better}</h2>
      {scored && <Watching key={scored.id} of={scored} onRuns={setRuns} />}
      <p class="hint">{heldOut ? w.betterHeldOut : w.betterHint}</p>
      {!heldOut && <FileField label={w.dropTest} hint={w.dropHint} accept={KINDS} file={file} onFile={setFile} />}
      {heldOut && (
        <details class="more">
          <summary>{w.otherExamples}</summary>
          <FileField label={w.dropTest} hint={w.dropHint} accept={KINDS} file={file} onFile={setFile} />
        </details>
      )}
      <Failure error={failure} />
      <Failure error={evaluations.failure} again={evaluations.again} />
      <div class="row">
        <Button kind={scored ? "plain" : "primary"} icon="compare" busy={busy || runs || (!file && !heldOut)} onClick={begin}>{scored ? w.scoreAgain : w.score}</Button>
      </div>
      <Terminal commands={[{ id: "curl", text: command }]} />
    </section>
  );
}
