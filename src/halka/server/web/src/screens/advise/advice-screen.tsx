// One advice: its probes while they run, then the verdict with its evidence.
import { Buttons } from "../../jobs/buttons";
import { commandsOf } from "../../jobs/commands";
import { ENDED, type Job } from "../../jobs/jobs";
import { Queued } from "../../jobs/queued";
import { StatusBadge } from "../../jobs/status";
import { useWatched } from "../../jobs/watched";
import { Failure, Notice } from "../../parts/notice";
import { Waiting } from "../../parts/progress";
import { Terminal } from "../../parts/terminal";
import { fill, moment, words } from "../../words/words";
import { Heading } from "../shown";
import { PROBES, type Probe } from "./question";
import { Verdict, type Advised } from "./verdict";

export function AdviceScreen({ id }: { id: string }) {
  const w = words.value.jobs;
  const { job, failure, again } = useWatched(id);
  return (
    <div class="train stack">
      <p><a href="/advise">{words.value.advise.others}</a></p>
      <Heading title={w.advice} lead={job ? fill(w.since, { when: moment(job.created_at) }) : ""}>
        {job && <div class="row"><StatusBadge status={job.status} /><Buttons job={job} changed={again} home="/advise" /></div>}
      </Heading>
      <Failure error={failure} again={again} />
      {!job && failure === null && <Waiting label={words.value.shell.loading} />}
      {job?.error && <Notice kind="error"><p lang="en">{job.error}</p></Notice>}
      {job?.status === "interrupted" && <Notice kind="warning"><p>{w.interruptedHint}</p></Notice>}
      {job?.status === "queued" && <Queued job={job} />}
      {job && job.status !== "queued" && job.status !== "done" && <Probes job={job} />}
      {job?.status === "done" && job.result !== null && <Verdict job={job as Job<Advised>} />}
      {job && <Terminal commands={commandsOf(job)} />}
    </div>
  );
}

/** The probes in their order: which are done, which runs and what it does. */
function Probes({ job }: { job: Job }) {
  const w = words.value.advise;
  const skip = (job.settings["skip"] as Probe[] | undefined) ?? [];
  const [, name, doing] = /^(\w+): (.*)$/s.exec(job.progress ?? "") ?? [];
  const at = PROBES.findIndex((probe) => probe === name);
  const runs = !ENDED.includes(job.status);
  const stateOf = (probe: Probe, index: number) => (skip.includes(probe) ? "skipped" : index < at ? "done" : index === at && runs ? "now" : "later");
  return (
    <section class="sheet stack" aria-label={w.progress}>
      <h2>{w.progress}</h2>
      <ol class="steps">
        {PROBES.map((probe, index) => {
          const state = stateOf(probe, index);
          return (
            <li key={probe} class={state} aria-current={state === "now" ? "step" : undefined}>
              <span class="dot" aria-hidden="true" />
              <span><strong>{w[`probe_${probe}`]}</strong> <span class="hint">{w[`state_${state}`]}</span>
                {state === "now" && <span class="hint doing" lang="en">{doing}</span>}</span>
            </li>
          );
        })}
      </ol>
      <p class="hint">{w.progressHint}</p>
    </section>
  );
}
