// A job that waits for its turn, and how many of the caller's are before it.
import { useLoading, useLookingAgain } from "../parts/loading";
import { Failure } from "../parts/notice";
import { Waiting } from "../parts/progress";
import { count, words } from "../words/words";
import { ENDED, listJobs, type Job } from "./jobs";

export function Queued({ job }: { job: Job }) {
  const w = words.value.jobs;
  const { value, failure, again } = useLoading(listJobs, [job.id]);
  useLookingAgain(again);
  const isBefore = (other: Job) => !ENDED.includes(other.status) && (other.status !== "queued" || (other.queued_at ?? 0) < (job.queued_at ?? 0));
  const before = value?.filter((other) => other.id !== job.id && isBefore(other)).length ?? 0;
  return (
    <>
      <Waiting label={before ? count(w.queuedBehind, before) : w.queuedHint} />
      <Failure error={failure} again={again} />
    </>
  );
}
