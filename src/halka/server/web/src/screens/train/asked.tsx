// What a job was asked for: its data, what was held out, the method and its settings.
import { methodOf, type Job } from "../../jobs/jobs";
import { Terms } from "../../parts/terms";
import { link } from "../../router";
import { count, percent, words } from "../../words/words";
import { textOf } from "../adapters/adapter";

export function Asked({ job }: { job: Job }) {
  const { jobs: w, train, adapters } = words.value;
  const { data, task, validation, held_out_of: training, format } = job.settings;
  const formats: Record<string, string> = adapters.formats;
  return (
    <section class="sheet stack">
      <h2>{w.asked}</h2>
      <Terms of={[
        [w.data, job.files.data ?? (typeof data === "number" ? count(train.examples, data) : null)],
        [w.data, typeof training === "string" ? <a href={link("train", training)}>{w.heldOutOf}</a> : null],
        [w.task, typeof task === "string" ? task : null],
        [train.held, job.kind === "train" ? job.files.validation ?? heldOf(validation) : null],
        [w.method, methodOf(job)],
        ...chosenIn(job),
        [adapters.write, job.kind === "merge" ? formats[String(format ?? "none")] : null],
      ]} />
    </section>
  );
}

/** What was held out for validation: a share of the data, so many examples, or nothing. */
function heldOf(validation: unknown): string {
  const w = words.value.train;
  return typeof validation !== "number" ? w.heldNone : validation < 1 ? percent(validation) : count(w.examples, validation);
}

/** What was chosen for the method and for the training. */
function chosenIn({ settings: { settings } }: Job): [string, string][] {
  const { train: w, fields } = words.value;
  const { method: _, train, ...own } = (settings ?? {}) as Record<string, unknown>;
  const names: Record<string, string> = fields;
  const written = (value: unknown) => (value === null ? w.none : typeof value === "boolean" ? (value ? w.yes : w.no) : textOf(value));
  return Object.entries({ ...own, ...(train as object | undefined) })
    .map(([name, value]) => [names[name] ?? name, written(value)]);
}
