// One job: watched while it runs, with what came of it.
import { Buttons } from "../../jobs/buttons";
import { commandsOf } from "../../jobs/commands";
import { type Evaluated, type Job, type Trained } from "../../jobs/jobs";
import { titleOf } from "../../jobs/list";
import { Queued } from "../../jobs/queued";
import { StatusBadge } from "../../jobs/status";
import { useWatched } from "../../jobs/watched";
import { Failure, Notice } from "../../parts/notice";
import { Waiting } from "../../parts/progress";
import { Terminal } from "../../parts/terminal";
import { fill, moment, words } from "../../words/words";
import { Heading } from "../shown";
import { Asked } from "./asked";
import { Evaluation } from "./evaluation";
import { Outcome } from "./outcome";
import { Running } from "./running";

export function JobScreen({ id }: { id: string }) {
  const w = words.value.jobs;
  const { job, steps, failure, again } = useWatched(id);
  return (
    <div class="train stack">
      <p><a href="/train">{w.all}</a></p>
      <Heading title={job ? titleOf(job) : id} lead={job ? fill(w.since, { when: moment(job.created_at) }) : ""}>
        {job && <div class="row"><StatusBadge status={job.status} /><Buttons job={job} changed={again} /></div>}
      </Heading>
      <Failure error={failure} again={again} />
      {!job && failure === null && <Waiting label={words.value.shell.loading} />}
      {job?.error && job.kind !== "evaluate" && <Notice kind="error"><p lang="en">{job.error}</p></Notice>}
      {job?.status === "interrupted" && <Notice kind="warning"><p>{w.interruptedHint}</p></Notice>}
      {job?.status === "queued" && job.kind !== "evaluate" && <Queued job={job} />}
      {job?.kind === "train" && <Running job={job} steps={steps} />}
      {job?.kind === "train" && job.status === "done" && job.adapter && <Outcome job={job as Job<Trained>} adapter={job.adapter} />}
      {job?.kind === "evaluate" && <section class="sheet stack"><h2>{w.scores}</h2><Evaluation job={job as Job<Evaluated>} /></section>}
      {job && job.kind !== null && <Asked job={job} />}
      {job && <Terminal commands={commandsOf(job)} />}
    </div>
  );
}
