// What advice is asked for, as it stands in the form.
import { signal } from "@preact/signals";
import { curlUpload } from "../../jobs/commands";
import { startJob, type Job } from "../../jobs/jobs";
import { quoted, type Command } from "../../parts/terminal";
import { typed } from "../../words/words";

export const PROBES = ["cleanliness", "strength", "knowledge", "learnability", "fit"] as const;
export type Probe = (typeof PROBES)[number];

export interface Question {
  file: File | null;
  validation: File | null;
  collection: string;
  minutes: string;
  /** Of 100. */
  target: string;
  metric: string;
  skip: Probe[];
  full: boolean;
}

export const question = signal<Question>({
  file: null, validation: null, collection: "", minutes: "10", target: "", metric: "", skip: [], full: false,
});

export function change(to: Partial<Question>): void {
  question.value = { ...question.value, ...to };
}

/** The body of POST /v1/jobs without its data. */
export function jobOf(one: Question): Record<string, unknown> {
  const minutes = numberIn(one.minutes);
  const target = numberIn(one.target);
  return {
    kind: "advise",
    ...(one.collection ? { collection: one.collection } : {}),
    ...(minutes === null ? {} : { minutes }),
    ...(target === null ? {} : { target: target / 100 }),
    ...(one.metric.trim() ? { metric: one.metric.trim() } : {}),
    ...(one.skip.length ? { skip: one.skip } : {}),
    ...(one.full ? { full: true } : {}),
  };
}

export function wrongIn(one: Question): { minutes: boolean; target: boolean } {
  const minutes = numberIn(one.minutes);
  const target = numberIn(one.target);
  return {
    minutes: minutes === null ? one.minutes.trim() !== "" : minutes <= 0 || minutes > 24 * 60,
    target: target === null ? one.target.trim() !== "" : target < 0 || target > 100,
  };
}

function numberIn(text: string): number | null {
  const value = typed(text);
  return Number.isFinite(value) ? value : null;
}

const asked = new Map<string, File | null>();

export async function start(one: Question): Promise<Job> {
  const job = await startJob(jobOf(one), { data: one.file, validation: one.validation });
  asked.set(job.id, one.file);
  return job;
}

/** The file that an advice was asked for with, where this tab asked for it. */
export const fileOf = (id: string) => asked.get(id) ?? null;

export function commandsFor(one: Question, base: string): Command[] {
  const data = one.file?.name ?? "train.jsonl";
  const job = jobOf(one) as { minutes?: number; target?: number; metric?: string };
  const halka = [
    `halka advise --base ${quoted(base)}`,
    `--data ${quoted(data)}`,
    ...(one.validation ? [`--validation ${quoted(one.validation.name)}`] : []),
    ...(one.collection ? [`--documents ${quoted(`${one.collection}/`)}`] : []),
    ...(job.minutes === undefined ? [] : [`--minutes ${job.minutes}`]),
    ...(job.target === undefined ? [] : [`--target ${job.target}`]),
    ...(job.metric === undefined ? [] : [`--metric ${quoted(job.metric)}`]),
    ...one.skip.map((probe) => `--skip ${probe}`),
    ...(one.full ? ["--full"] : []),
  ].join(" \\\n  ");
  return [
    { id: "halka", text: halka },
    { id: "curl", text: curlUpload("/v1/jobs/upload", job, { data, validation: one.validation?.name ?? null }) },
  ];
}
