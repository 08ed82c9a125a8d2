// Merges an adapter into its base as a job, shows what that changes, and gives what was written.
import { useState } from "preact/hooks";
import { deleteJob, ENDED, listJobs, startJob, type Job } from "../../jobs/jobs";
import { Queued } from "../../jobs/queued";
import { Button } from "../../parts/button";
import { curl } from "../../parts/curl";
import { Checkbox, SelectField } from "../../parts/field";
import { useAction, useLoading, useLookingAgain } from "../../parts/loading";
import { Failure, Notice } from "../../parts/notice";
import { Waiting } from "../../parts/progress";
import { Table } from "../../parts/table";
import { quoted, Terminal } from "../../parts/terminal";
import { count, fill, moment, number, percent, words } from "../../words/words";
import { versionedName, type Whole } from "./adapter";

interface Difference {
  max: number;
  mean: number;
  kl: number;
  same_token: number;
}

const COMPARED = ["error", "effect", "noise", "merged", "rounding"] as const;
type Errors = Record<(typeof COMPARED)[number], Difference> & { dtype: string; tokens: number; relative: number };

type Merged = Job<{ error?: Errors }>;

const FORMATS = ["", "safetensors", "gguf", "lora-gguf", "peft", "vllm"] as const;
const DTYPES = ["", "bfloat16", "float16", "float32", "q8_0"] as const;
const JOBS = "/v1/jobs";
const precisions = (format: string): string[] => DTYPES.filter((value) => value !== "q8_0" || format === "gguf");
const runs = (job: Job) => !ENDED.includes(job.status);

export function Merge({ adapter }: { adapter: Whole }) {
  const w = words.value.adapters;
  const of = versionedName(adapter.id, adapter.version);
  const jobs = useLoading(async () => {
    // One asked for before was of another, deleted, version of that number; one by the name alone, of whichever was the newest then.
    const own = (job: Job) => job.kind === "merge" && job.settings["adapter"] === of && job.created_at >= adapter.created_at;
    return (await listJobs()).filter(own) as Merged[];
  }, [of, adapter.created_at]);
  const [format, setFormat] = useState("");
  const [dtype, setDtype] = useState("");
  const [force, setForce] = useState(false);
  const { busy, failure, run } = useAction();
  const choose = (into: string) => {
    setFormat(into);
    if (!precisions(into).includes(dtype)) setDtype("");
  };
  const waiting = jobs.value?.some(runs) ?? false;
  useLookingAgain(jobs.again, waiting);
  const body = { kind: "merge", adapter: of, ...(format && { format }), ...(format && dtype && { dtype }), ...(force && { force }) };
  const into = format.endsWith("gguf") ? `${adapter.id}.gguf` : `${adapter.id}-merged`;
  const flags = [...(format ? [`--into ${quoted(into)} --as ${format}`] : []), ...(format && dtype ? [`--to-dtype ${dtype}`] : []), ...(force ? ["--force"] : [])];
  return (
    <section class="sheet stack">
      <h2>{w.merge}</h2>
      <p>{w.mergeHint}</p>
      <div class="choose">
        <SelectField label={w.write} value={format} onValue={choose} options={FORMATS.map((value) => ({ value, text: w.formats[value || "none"] }))} />
        {format && <SelectField label={w.precision} value={dtype} onValue={setDtype}
          options={precisions(format).map((value) => ({ value, text: value || w.asBase }))} />}
      </div>
      {format && <Checkbox label={w.force} checked={force} onValue={setForce} />}
      <div class="row">
        <Button kind="primary" busy={busy || waiting} onClick={() => run(() => startJob(body, { data: null }).then(jobs.again))}>{format ? w.mergeAndWrite : w.measure}</Button>
      </div>
      <Failure error={failure} />
      <Failure error={jobs.failure} again={jobs.again} />
      {jobs.value?.map((job, at) => <Result key={job.id} job={job} open={at === 0} again={jobs.again} />)}
      <Terminal commands={[
        { id: "halka", text: `halka merge ${quoted(of)} --store adapters --base ${quoted(adapter.base ?? "BASE")} ${flags.join(" ")}`.trim() },
        { id: "curl", text: curl(JOBS, { json: body }) },
      ]} />
    </section>
  );
}

function Result({ job, open, again }: { job: Merged; open: boolean; again: () => void }) {
  const w = words.value.adapters;
  const { busy, failure, run } = useAction();
  const format = FORMATS.find((value) => value !== "" && value === job.settings["format"]);
  const title = `${format ? w.formats[format] : w.measured} · ${moment(job.created_at)}`;
  const error = job.result?.error;
  return (
    <article class="merged stack" aria-label={title}>
      <header class="row">
        <h3>{title}</h3>
        {job.status === "done" && job.settings["format"] && <a class="button" href={`${JOBS}/${job.id}/archive`} download>{w.download}</a>}
        {!runs(job) && <Button kind="quiet" icon="trash" label={fill(w.removeResult, { title })} busy={busy} onClick={() => run(() => deleteJob(job.id).then(again))} />}
      </header>
      {job.status === "queued" ? <Queued job={job} /> : runs(job) && <Waiting label={w.merging} />}
      {job.error && <Notice kind="error"><p lang="en">{job.error}</p></Notice>}
      <Failure error={failure} />
      {error && (
        <>
          <p>{fill(count(w.mergeError, error.tokens), { share: percent(error.relative) })}</p>
          <details open={open}>
            <summary class="hint">{w.compared}</summary>
            <Table caption={title} rows={COMPARED.filter((name) => error[name])} keyOf={(name) => name} columns={[
              { title: w.compared, cell: (name) => fill(w.comparedOf[name], { dtype: error.dtype }) },
              { title: "KL", numeric: true, cell: (name) => figure(error[name].kl) },
              { title: w.largest, numeric: true, cell: (name) => figure(error[name].max) },
              { title: w.mean, numeric: true, cell: (name) => figure(error[name].mean) },
              { title: w.sameToken, numeric: true, cell: (name) => percent(error[name].same_token) },
            ]} />
          </details>
        </>
      )}
    </article>
  );
}

const figure = (value: number) => number(value, { maximumSignificantDigits: 2, notation: value !== 0 && Math.abs(value) < 1e-3 ? "scientific" : "standard" });
