// The jobs there were and those to come, with their state; looked at again while one is under way.
import type { ComponentChildren } from "preact";
import { curl } from "../parts/curl";
import { Loaded, useLoading, useLookingAgain } from "../parts/loading";
import { Empty } from "../parts/notice";
import { Table } from "../parts/table";
import { Terminal } from "../parts/terminal";
import { link } from "../router";
import { fill, moment, percent, short, words } from "../words/words";
import { ENDED, listJobs, methodOf, type Job } from "./jobs";
import { StatusBadge } from "./status";

export function JobList({ kinds }: { kinds: string[] }) {
  const w = words.value.jobs;
  const jobs = useLoading(async () => (await listJobs()).filter((job) => job.kind === null || kinds.includes(job.kind)), []);
  useLookingAgain(jobs.again, jobs.value?.some((job) => !ENDED.includes(job.status)) ?? false);
  return (
    <section class="stack jobs">
      <h2>{w.title}</h2>
      <Loaded of={jobs}>
        {(all) => all.length ? (
          <>
            <Table caption={w.title} rows={all} keyOf={(job) => job.id} columns={[
              { title: w.job, cell: (job) => <><a href={link(job.kind === "advise" ? "advise" : "train", job.id)}>{titleOf(job)}</a>{methodOf(job) && <span class="hint method">{methodOf(job)}</span>}</> },
              { title: w.status, cell: (job) => <StatusBadge status={job.status} /> },
              { title: w.came, cell: outcome },
              { title: w.when, cell: (job) => moment(job.created_at) },
            ]} />
            <Terminal commands={[{ id: "curl", text: curl("/v1/jobs") }]} />
          </>
        ) : <Empty icon={kinds[0] === "advise" ? "advise" : "train"} title={w.empty} hint={w.emptyHint} />}
      </Loaded>
    </section>
  );
}

export function titleOf(job: Job): string {
  const w = words.value.jobs;
  if (job.kind === "train") return job.name ?? job.id;
  if (job.kind === "evaluate") return fill(w.scoreOf, { name: ((job.settings["adapters"] as string[] | undefined) ?? []).join(", ") || w.base });
  if (job.kind === "merge") return fill(w.mergeOf, { name: String(job.settings["adapter"]) });
  return job.kind === "advise" ? w.advice : job.id;
}

function outcome(job: Job): ComponentChildren {
  const w = words.value.jobs;
  const step = job.last_step;
  if (job.error !== null) return <span lang="en">{job.error}</span>;
  const choice = (job.result as { advice?: { choice: string } } | null)?.advice?.choice;
  if (choice !== undefined) return (words.value.advise as Record<string, unknown>)[`row_${choice.replace(/\W+/g, "_")}`] as string ?? choice;
  if (job.status === "done") return step ? fill(w.lossAt, { loss: short(step.loss) }) : "";
  return step ? fill(w.progress, { share: percent(step.step / step.steps), loss: short(step.loss) }) : "";
}
