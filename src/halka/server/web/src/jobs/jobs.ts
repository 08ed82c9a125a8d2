// Jobs of the server: what they are, how one begins, and how one is watched to its end.
import type { Signal } from "@preact/signals";
import { call, get, post, remove, type List } from "../api";
import { lastingEvents } from "../events";
import type { Item } from "../parts/item";
import { link } from "../router";
import { withFiles, type Files } from "./files";

export type Status = "queued" | "running" | "stopping" | "stopped" | "interrupted" | "failed" | "done";
export const ENDED: readonly Status[] = ["stopped", "interrupted", "failed", "done"];

export interface Step {
  step: number;
  steps: number;
  loss: number;
  validation: number | null;
  /** Of the answers to the validation examples, where that decides which evaluation is the best. */
  score?: number | null;
  best?: boolean;
  tokens: number;
  seconds: number;
  tokens_per_second: number;
  memory: number;
  /** Of all tokens so far, those that had to be computed; a run of an older version does not say it. */
  computed?: number | null;
}

export interface Score {
  value: number | null;
  low: number | null;
  high: number | null;
  n: number;
}

export interface Job<Result = unknown> {
  id: string;
  kind: string | null;
  name: string | null;
  status: Status;
  /** What was asked for, without its rows. */
  settings: Record<string, unknown>;
  /** The names of those that came with it. */
  files: { data?: string; validation?: string };
  created_at: number;
  /** As `created_at`, but to the moment, and of one that was resumed when that was; null: its files are damaged. */
  queued_at: number | null;
  started_at: number | null;
  ended_at: number | null;
  error: string | null;
  adapter: { name: string; version: number } | null;
  last_step: Step | null;
  /** What an evaluation or an advice does now. */
  progress?: string | null;
  result: Result | null;
}

export interface Trained {
  loss: number;
  validation_loss: number | null;
  score?: number | null;
  best_step: number;
  tokens: number;
  seconds: number;
  parameters: number;
}

export interface Evaluated {
  examples: number;
  scores?: Record<string, Score>;
  base_scores?: Record<string, Score>;
  /** Of several adapters, which have no scores in common. */
  by_adapter?: { adapter: string | null; scores: Record<string, Score> }[];
}

/** A line of an evaluation's answers; `adapter` is null for the bare base. */
interface Prediction {
  /** "" of a task's own examples, which all adapters answer in the same order. */
  where: string;
  prompt: string;
  references: string[];
  prediction: string;
  adapter: string | null;
}

const at = (id: string, ...rest: string[]) => `/v1${link("jobs", id, ...rest)}`;

/** The method of a training, where it was asked for one. */
export function methodOf({ settings: { settings } }: Job): string {
  const method = (settings as Record<string, unknown> | undefined)?.["method"];
  return typeof method === "string" ? method : "";
}

export const listJobs = async () => (await get<List<Job>>("/v1/jobs")).data;
export const stopJob = (id: string) => post<Job>(at(id, "stop"));
export const resumeJob = (id: string) => post<Job>(at(id, "resume"));
export const deleteJob = (id: string) => remove(at(id));

export const predictionsOf = (id: string) => at(id, "predictions");

/** An evaluation's examples with the answers to them, those of the adapters first. `base`: what the bare base is called. */
export async function answersOf(id: string, base: string): Promise<Item[]> {
  const text = await (await call(predictionsOf(id))).text();
  const items = new Map<string, Item>();
  const counts = new Map<string | null, number>();
  for (const line of text.split("\n").filter(Boolean)) {
    const { where, prompt, references: [reference = ""], prediction, adapter } = JSON.parse(line) as Prediction;
    const nth = (counts.get(adapter) ?? 0) + 1;
    counts.set(adapter, nth);
    const of = where || `#${nth}`;
    const item = items.get(of) ?? { item: items.size, prompt, reference, answers: [] };
    items.set(of, item);
    item.answers.push({ label: adapter ?? base, prediction });
  }
  return [...items.values()];
}

/** Queue a job, whose data may be files. */
export const startJob = (job: object, files: Files) => withFiles(files, job, (body) => post<Job>("/v1/jobs", body));

export interface Watched {
  job: Job | null;
  /** By their numbers, in order. */
  steps: Step[];
  failure: unknown;
}

const PAUSE = 150; // milliseconds in which events are gathered before the screen is drawn anew

/** Follow a job to its end; a connection that breaks is made again, and the events go on after the last one. */
export function watch(id: string, watched: Signal<Watched>): () => void {
  const controller = new AbortController();
  const steps = new Map(watched.peek().steps.map((step) => [step.step, step]));
  let job = watched.peek().job;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const draw = (failure: unknown = null) => {
    clearTimeout(timer);
    timer = undefined;
    if (controller.signal.aborted) return;
    watched.value = { job, steps: [...steps.values()].sort((a, b) => a.step - b.step), failure };
  };
  const ended = (text: string) => ENDED.includes((JSON.parse(text) as Job).status);
  const follow = async () => {
    const stream = lastingEvents(at(id, "events"), controller.signal, ({ event, data }) => event === "status" && ended(data));
    for await (const { event, data } of stream) {
      if (event === "status") job = JSON.parse(data) as Job;
      else if (event === "progress" && job) job = { ...job, progress: (JSON.parse(data) as { progress: string }).progress };
      else if (event === "step") {
        const step = JSON.parse(data) as Step;
        steps.set(step.step, step);
      }
      timer ??= setTimeout(draw, PAUSE);
    }
  };
  follow().then(() => draw(), (error: unknown) => draw(error));
  return () => {
    clearTimeout(timer);
    controller.abort();
  };
}
