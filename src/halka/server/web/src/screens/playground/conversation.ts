// The conversation: each turn has one prompt, and an answer of every column, which streams in.
import { effect, signal, type Signal } from "@preact/signals";
import { ApiError } from "../../api";
import { events } from "../../events";
import { keepThroughReloads } from "../../kept";
import { session, SessionOver } from "../../session";
import { typed } from "../../words/words";
import { columns, removeColumn, restoreColumns, type Column } from "./columns";
import { draft, sampling, system } from "./settings";

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
  /** The other models whose answers to earlier turns were in the place of its own. */
  others: string[];
}

export interface Turn {
  id: number;
  prompt: string;
  answers: Signal<Record<number, Signal<Answer>>>;
}

export const turns = signal<Turn[]>([]);
/** The id of the first turn that models read. */
export const firstRead = signal(0);
/** The conversation that was left for a new one. */
export const left = signal<{ turns: Turn[]; firstRead: number } | null>(null);
const running = signal<ReadonlyMap<Signal<Answer>, AbortController>>(new Map());
let ids = 0;

export const busy = () => running.value.size > 0;

/** Ask what is written. */
export function ask(): void {
  const prompt = draft.value.trim();
  draft.value = "";
  left.value = null;
  const turn: Turn = { id: ++ids, prompt, answers: signal({}) };
  turns.value = [...turns.value, turn];
  for (const column of columns.value) void answer(turn, column);
}

export function askAgain(turn: Turn, column: Column): void {
  void answer(turn, column);
}

/** Ask without the older half of what models read before a turn: those for which it was too long. */
export function askWithoutFirst(turn: Turn): void {
  const before = readBefore(turn);
  firstRead.value = before[Math.ceil(before.length / 2)]?.id ?? turn.id;
  for (const column of columns.value) if (isTooLong(turn.answers.peek()[column.id]?.peek().failure)) void answer(turn, column);
}

/** The turns that models read before this one, or before the next. */
export function readBefore(turn?: Turn): Turn[] {
  return turns.value.filter(({ id }) => id >= firstRead.value && (!turn || id < turn.id));
}

export function stop(only?: Signal<Answer>, why?: SessionOver): void {
  for (const [one, controller] of running.peek()) if (!only || one === only) controller.abort(why);
}

/** Remove a column; nobody waits for its answers any more. */
export function closeColumn(id: number): void {
  for (const [one, controller] of running.peek()) if (one.peek().column.id === id) controller.abort();
  removeColumn(id);
}

export function beginAnew(): void {
  stop();
  left.value = { turns: turns.value, firstRead: firstRead.value };
  show([], 0);
}

/** Go back to the conversation that was left. */
export function goBack(): void {
  if (left.value) show(left.value.turns, left.value.firstRead);
  left.value = null;
}

function show(shown: Turn[], first: number): void {
  turns.value = shown;
  firstRead.value = first;
}

effect(() => {
  if (session.value === null) stop(undefined, new SessionOver());
});

keepThroughReloads("playground-conversation-1", () => {
  void running.value; // an answer is kept once nothing more comes of it
  const shown = turns.value.map(({ id, prompt, answers }) => ({
    id, prompt, answers: Object.values(answers.value).map((one) => one.peek()).filter(isWhole),
  }));
  return shown.length ? { columns: columns.value, firstRead: firstRead.value, turns: shown } : null;
}, (before) => {
  restoreColumns(before.columns, before.turns.flatMap((turn) => turn.answers.map((one) => one.column)));
  const turnOf = (answers: Answer[]) => signal(Object.fromEntries(answers.map((one) => [one.column.id, signal(one)])));
  show(before.turns.map((turn) => ({ ...turn, answers: turnOf(turn.answers) })), before.firstRead);
  ids = before.turns.at(-1)?.id ?? 0;
});

/** Whether nothing more comes of an answer, and models can read it. One without a word was still an answer. */
function isWhole(answer: Answer): boolean {
  return answer.state === "done" || (answer.state === "stopped" && answer.text !== "");
}

/** Whether a failure is the request's own, so that it fails however often it is asked. */
export const isRefusal = (failure: unknown) => isTooLong(failure) || (failure instanceof ApiError && [400, 413].includes(failure.status));
export const isTooLong = (failure: unknown) => failure instanceof ApiError && failure.code === "context_length_exceeded";

/** The earlier turns as a column reads them: each with its own answer, else with the first that another has. */
function readBy(column: Column, before: Turn[]): { prompt: string; answer: Answer }[] {
  return before.flatMap((turn) => {
    const answers = turn.answers.value;
    const inOrder = [column, ...columns.value].map(({ id }) => answers[id]);
    const answer = [...inOrder, ...Object.values(answers)].flatMap((one) => (one && isWhole(one.value) ? [one.value] : []))[0];
    return answer ? [{ prompt: turn.prompt, answer }] : [];
  });
}

/** What a column is asked after earlier turns: the body of POST /v1/chat/completions. */
export function bodyOf(column: Column, prompt: string, before: Turn[]): Record<string, unknown> {
  const earlier = readBy(column, before).flatMap((turn) => [
    { role: "user", content: turn.prompt },
    { role: "assistant", content: turn.answer.text },
  ]);
  const settings = Object.entries(sampling.value).map(([name, text]) => [name, typed(text)] as const);
  return {
    model: column.model,
    messages: [...(system.value.trim() ? [{ role: "system", content: system.value }] : []), ...earlier, { role: "user", content: prompt }],
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
  const before = readBefore(turn);
  const others = readBy(column, before).map((earlier) => earlier.answer.column.model).filter((model) => model !== column.model);
  if (draft.peek() === turn.prompt) draft.value = "";
  const one = signal<Answer>({
    state: "waiting", column, text: "", failure: null, asked: performance.now(), first: null, last: null, tokens: 0,
    content: null, finish: null, sources: [], citations: [], abstained: false,
    others: [...new Set(others)],
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
    const { aborted, reason } = controller.signal;
    change(aborted && !(reason instanceof SessionOver) ? { state: "stopped" } : { state: "failed", failure: aborted ? reason : failure });
  } finally {
    const others = new Map(running.value);
    others.delete(one);
    running.value = others;
    if (!draft.peek() && Object.values(turn.answers.peek()).every((other) => isRefusal(other.peek().failure))) draft.value = turn.prompt;
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
