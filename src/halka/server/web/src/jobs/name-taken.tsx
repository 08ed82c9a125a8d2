// Warns that a name is taken: what is stored under it becomes the next version of what has it.
import { models } from "../api";
import { useLoading } from "../parts/loading";
import { Failure, Notice } from "../parts/notice";
import { fill, words } from "../words/words";
import { ENDED, listJobs } from "./jobs";

export function NameTaken({ name }: { name: string }) {
  const w = words.value.jobs;
  const { value, failure, again } = useLoading(() => Promise.all([models(), listJobs()]), []);
  if (failure) return <Failure error={failure} again={again} />;
  const [stored, jobs] = value ?? [[], []];
  const texts = [
    ...(stored.some(({ id, parent }) => id === name && parent !== null) ? [w.nameStored] : []),
    ...(jobs.some((job) => job.kind === "train" && job.name === name && !ENDED.includes(job.status)) ? [w.nameInTraining] : []),
  ];
  return texts.length ? <Notice kind="warning">{texts.map((text) => <p key={text}>{fill(text, { name })}</p>)}</Notice> : null;
}
