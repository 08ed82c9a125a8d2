// What the page does with jobs, as commands of a terminal.
import { curl } from "../parts/curl";
import type { Command } from "../parts/terminal";
import { words } from "../words/words";
import type { Job } from "./jobs";

/** A request of files beside JSON, as curl sends it. */
export function curlUpload(path: string, job: object, files: { data: string; validation?: string | null }): string {
  const validation: [string, string][] = files.validation ? [["validation", `@${files.validation}`]] : [];
  return curl(path, { form: [["data", `@${files.data}`], ...validation, ["job", JSON.stringify(job)]] });
}

/** What may be done with a job. */
export function commandsOf({ id }: Job): Command[] {
  const w = words.value.jobs;
  return [
    { id: "events", title: w.watching, text: curl(`/v1/jobs/${id}/events`) },
    { id: "stop", title: w.stop, text: curl(`/v1/jobs/${id}/stop`, { method: "POST" }) },
    { id: "resume", title: w.resume, text: curl(`/v1/jobs/${id}/resume`, { method: "POST" }) },
    { id: "remove", title: w.remove, text: curl(`/v1/jobs/${id}`, { method: "DELETE" }) },
  ];
}
