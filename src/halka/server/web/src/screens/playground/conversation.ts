// The conversation: each turn has one prompt, and an answer of every column, which streams in.
import { effect, signal, type Signal } from "@preact/signals";
import { events } from "../../events";
import { session } from "../../session";
import { typed } from "../../words/words";
import { columns, removeColumn, type Column } from "./columns";

export interface Source {
  number: number;
  document: string;
  page: number | null;
  start: number;
  end: number;
  text: string;
  cited: boolean;
}

export interface Citation {
  /** Where `[1]` stands in the answer, in code points. */
  start_index: number;
  end_index: number;
  source: number;
}

export interface Answer {
  state: "waiting" | "writing" | "done" | "stopped" | "failed";
  column: Column;
  text: string;
  failure: unknown;
  /** Moments by `performance.now`. */
  asked: number;
  first: number | null;
  last: number | null;
  tokens: number;
  /** The id of the adapter's content; null: the base answered, or nobody yet. */
  content: string | null;
  finish: string | null;
  sources: Source[];
  citations: Citation[];
  abstained: boolean;
}

export interface Turn {
  id: number;
  prompt: string;
  answers: Signal<Record<number, Signal<Answer>>>;
}

export interface Sampling {
  temperature: string;
  top_p: string;
  max_tokens: string;
  seed: string;
}

export const turns = signal<Turn[]>([]);
export const sampling = signal<Sampling>({ temperature: "", top_p: "", max_tokens: "", seed: "" });
const running = signal<ReadonlyMap<Signal<Answer>, AbortController>>(new Map());
let ids = 0;

export const busy = () => running.value.size > 0;

export function ask(prompt: string): void {
  const turn: Turn = { id: ++ids, prompt, answers: signal({}) };
  turns.value = [...turns.value, turn];
  for (const column of columns.value) void answer(turn, column);
}

export function askAgain(turn: Turn, column: Column): void {
  void answer(turn, column);
}

export function stop(only?: Signal<Answer>): void {
  for (const [one, controller] of running.peek()) if (!only || one === only) controller.abort();
}

/** Remove a column; nobody waits for its answers any more. */
export function closeColumn(id: number): void {
  for (const [one, controller] of running.peek()) if (one.peek().column.id === id) controller.abort();
  removeColumn(id);
}

export function forget(): void {
  stop();
  turns.value = [];
}

effect(() => {
  if (session.value === null) stop();
});

/** What a column is asked at a turn: the body of POST /v1/chat/completions. */
export function bodyOf(column: Column, prompt: string, before: Turn[]): Record<string, unknown> {
  const messages = before.flatMap((turn) => {
    const earlier = turn.answers.value[column.id]?.value;
    const complete = earlier && earlier.text && (earlier.state === "done" || earlier.state === "stopped");
    return complete ? [{ role: "user", content: turn.prompt }, { role: "assistant", content: earlier.text }] : [];
  });
  const settings = Object.entries(sampling.value).map(([name, text]) => [name, typed(text)] as const);
  return {
    model: column.model,
    messages: [...messages, { role: "user", content: prompt }],
    ...Object.fromEntries(settings.filter(([, value]) => Number.isFinite(value))),
    ...(column.collection ? { halka: { collection: column.collection } } : {}),
  };
}

interface Chunk {
  system_fingerprint: string | null;
  choices: { delta: { content?: string; annotations?: { file_citation: Citation }[] }; finish_reason: string | null }[];
  usage?: { completion_tokens: number } | null;
  halka?: { sources: Source[]; abstained: boolean };
}

async function answer(turn: Turn, column: Column): Promise<void> {
  const before = turns.value.slice(0, turns.value.indexOf(turn));
  const one = signal<Answer>({
    state: "waiting", column, text: "", failure: null, asked: performance.now(), first: null, last: null, tokens: 0,
    content: null, finish: null, sources: [], citations: [], abstained: false,
  });
  const old = turn.answers.peek()[column.id];
  if (old) stop(old);
  turn.answers.value = { ...turn.answers.value, [column.id]: one };
  const change = (to: Partial<Answer>) => {
    one.value = { ...one.value, ...to };
  };
  const controller = new AbortController();
  running.value = new Map(running.value).set(one, controller);
  try {
    const json = { ...bodyOf(column, turn.prompt, before), stream: true, stream_options: { include_usage: true, continuous_usage_stats: true } };
    const stream = events("/v1/chat/completions", { json, signal: controller.signal }, (event) => event.data === "[DONE]");
    for await (const event of stream) if (event.data !== "[DONE]") change(read(one.value, JSON.parse(event.data) as Chunk));
    change({ state: "done" });
  } catch (failure) {
    change(controller.signal.aborted ? { state: "stopped" } : { state: "failed", failure });
  } finally {
    const left = new Map(running.value);
    left.delete(one);
    running.value = left;
  }
}

/** What a chunk adds to an answer. */
function read(answer: Answer, chunk: Chunk): Partial<Answer> {
  const [choice] = chunk.choices;
  const now = performance.now();
  const text = choice?.delta.content ?? "";
  return {
    content: chunk.system_fingerprint ?? answer.content,
    tokens: chunk.usage?.completion_tokens ?? answer.tokens,
    finish: choice?.finish_reason ?? answer.finish,
    ...(text ? { text: answer.text + text, state: "writing" as const, first: answer.first ?? now, last: now } : {}),
    ...(choice?.delta.annotations ? { citations: choice.delta.annotations.map((annotation) => annotation.file_citation) } : {}),
    ...(chunk.halka ? { sources: chunk.halka.sources, abstained: chunk.halka.abstained } : {}),
  };
}
