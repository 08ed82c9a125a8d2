// A training that may become a job: its data, name, method and settings, as they stand in the form.
import { signal } from "@preact/signals";
import { post } from "../../api";
import { curlUpload } from "../../jobs/commands";
import { withFiles, type Files } from "../../jobs/files";
import { startJob, type Job } from "../../jobs/jobs";
import { quoted, type Command } from "../../parts/terminal";
import { flagsOf, settingsOf, valuesOf, type Catalogue, type Values } from "./catalogue";

export const KINDS = ".jsonl,.ndjson,.json,.csv,.tsv,.parquet";
export const KINDS_AND_TEXT = `${KINDS},.txt,.md`;

export interface Draft {
  file: File | null;
  name: string;
  /** What is not trained on, to validate with: a share of the data, "", or "file": a file of its own. */
  held: string;
  validation: File | null;
  method: string;
  values: Values;
  /** Whether a job was asked for all this before: its files are chosen again. */
  reused: boolean;
}

const EMPTY: Draft = { file: null, name: "", held: "0.1", validation: null, method: "", values: {}, reused: false };
export const draft = signal<Draft>(EMPTY);

export function change(to: Partial<Draft>): void {
  draft.value = { ...draft.value, ...to };
}

/** Another method, with its own defaults: what stands in fields of the same name means something else to it. */
export function chooseMethod(all: Catalogue, method: string): void {
  const ofTraining = new Set(all.settings.map((setting) => setting.path));
  change({ method, values: Object.fromEntries(Object.entries(draft.value.values).filter(([path]) => ofTraining.has(path))) });
}

/** A file, and the name that it suggests, unless somebody has typed another than the file before suggested. */
export function chooseFile(file: File | null): void {
  const { name, file: before, held } = draft.value;
  const typed = name !== (before ? nameFrom(before.name) : "");
  const share = isText(file) ? "" : isText(before) ? EMPTY.held : held;
  change({ file, name: typed ? name : file ? nameFrom(file.name) : "", held: held === "file" ? held : share });
}

/** Whether a file is one text: one example, of which no share can be held back. */
function isText(file: File | null): boolean {
  return file !== null && /\.(txt|md)$/i.test(file.name);
}

/** Take settings of a job or of an advice over; `job`: what else a job was asked for. */
export function chooseSettings(all: Catalogue, settings: Record<string, unknown>, job: Partial<Draft> = {}): void {
  change({ method: typeof settings["method"] === "string" ? settings["method"] : "", values: valuesOf(all, settings), reused: false, ...job });
}

/** A name that the API takes, from a file's. */
export function nameFrom(file: string): string {
  const plain = file.replace(/\.[^.]+$/, "").replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "");
  return plain.slice(0, 100).replace(/[.-]+$/, "") || "adapter";
}

/** The body of POST /v1/jobs without its data. */
export function jobOf(all: Catalogue, one: Draft): Record<string, unknown> {
  const share = Number(one.held);
  return {
    kind: "train",
    ...(one.name.trim() ? { name: one.name.trim() } : {}),
    ...(share > 0 && share < 1 ? { validation: share } : {}),
    settings: settingsOf(all, one.method || all.default, one.values),
  };
}

const filesOf = (one: Draft): Files => ({ data: one.file, validation: one.held === "file" ? one.validation : null });

export const start = (all: Catalogue, one: Draft): Promise<Job> => startJob(jobOf(all, one), filesOf(one));

/** What a training would read (`data/preview`), or need (`estimate`). */
export function look<T>(what: "data/preview" | "estimate", all: Catalogue, one: Draft, signal: AbortSignal): Promise<T> {
  return withFiles(filesOf(one), jobOf(all, one), (body) => post<T>(`/v1/${what}`, body, signal));
}

// ── the same in a terminal ───────────────────────────────────────────────────────────────────────────────────────────

export function trainCommands(all: Catalogue, one: Draft, base: string): Command[] {
  const data = one.file?.name ?? "train.jsonl";
  const validation = one.held === "file" ? one.validation?.name ?? null : null;
  const held = validation ?? (Number(one.held) > 0 ? one.held : null);
  const method = one.method || all.default;
  const halka = [
    `halka train --base ${quoted(base)}`,
    `--data ${quoted(data)}`,
    ...(held ? [`--validation ${quoted(held)}`] : []),
    `--method ${method}`,
    ...pairs(flagsOf(all, method, one.values)),
    `-o ${quoted(`runs/${one.name.trim() || "adapter"}`)}`,
  ].join(" \\\n  ");
  return [
    { id: "halka", text: halka },
    { id: "curl", text: curlUpload("/v1/jobs/upload", jobOf(all, one), { data, validation }) },
  ];
}

/** Flags with their values, each on a line. */
function pairs(words: string[]): string[] {
  const lines: string[] = [];
  for (const word of words) {
    if (word.startsWith("--")) lines.push(word);
    else lines.push(`${lines.pop()} ${quoted(word)}`);
  }
  return lines;
}
