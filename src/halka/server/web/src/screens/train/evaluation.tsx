// An evaluation: how far it is, then its scores.
import { useEffect } from "preact/hooks";
import { ENDED, type Evaluated, type Job } from "../../jobs/jobs";
import { Queued } from "../../jobs/queued";
import { useWatched } from "../../jobs/watched";
import { Failure, Notice } from "../../parts/notice";
import { Progress } from "../../parts/progress";
import { link } from "../../router";
import { words } from "../../words/words";
import { Scores } from "./scores";

export function Evaluation({ job }: { job: Job<Evaluated> }) {
  const w = words.value.jobs;
  if (job.result !== null) return <Scores job={job} />;
  if (job.error !== null) return <Notice kind="error"><p lang="en">{job.error}</p></Notice>;
  if (job.status === "queued") return <Queued job={job} />;
  return ENDED.includes(job.status) ? null : <Progress label={w.scoring} share={shareOf(job)} />;
}

/** One that is watched beside something else; `onRuns` hears whether it is under way. */
export function Watching({ of: { id, status }, onRuns }: { of: Job; onRuns: (runs: boolean) => void }) {
  const { job, failure, again } = useWatched(id);
  const runs = !ENDED.includes(job?.status ?? status);
  useEffect(() => onRuns(runs), [runs]);
  return (
    <>
      <Failure error={failure} again={again} />
      {job && <Evaluation job={job as Job<Evaluated>} />}
      {job && <p class="hint"><a href={link("train", id)}>{words.value.jobs.open}</a></p>}
    </>
  );
}

/** "answers of the bare base: 3 of 8": the base answers second. */
function shareOf(job: Job): number | null {
  const [, base, done, all] = /^answers( of the bare base)?: (\d+) of (\d+)$/.exec(job.progress ?? "") ?? [];
  if (done === undefined || all === undefined) return null;
  const share = Number(done) / Number(all);
  return job.settings["with_base"] ? (base ? 0.5 : 0) + share / 2 : share;
}
