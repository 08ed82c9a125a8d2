// An adapter as the API describes it, and what can be done with one.
import { get, post, remove, type List } from "../../api";
import { link } from "../../router";
import { number, short, words } from "../../words/words";

export interface Adapter {
  id: string;
  version: number;
  versions: number[];
  created_at: number;
  /** Null where there is no Card, as of peft's folders. */
  method: { name: string; fields?: Record<string, unknown> } | null;
  task: string;
  tags: string[];
  parameters: number | null;
  measurements: Record<string, unknown> | null;
  base: string | null;
  chat_template: string | null;
  training: Record<string, unknown> | null;
  /** A few, from the first step to the last. */
  losses: number[] | null;
  trained_at: string | null;
  files: Record<string, number>;
  bytes: number;
  loaded: boolean;
  pinned: boolean;
  /** Answers under way with it. */
  requests: number;
  /** Why it cannot be used. */
  error?: string;
}

/** One of them; lists leave out what is long. */
export interface Whole extends Adapter {
  curve: { step: number; loss: number; validation: number | null }[] | null;
  fingerprint: string | null;
}

export const ADAPTERS = "/v1/adapters";
export const pathOf = (name: string) => `${ADAPTERS}${link(name)}`;
/** `matching`: how many the search finds in all; `total`: how many there are. */
export const listAdapters = (find: string, start: number, count: number) =>
  get<List<Adapter> & { matching: number; total: number }>(`${ADAPTERS}?${new URLSearchParams({ find, start: String(start), count: String(count) })}`);
export const getAdapter = (name: string, version: number | null) => get<Whole>(pathOf(name) + versioned(version));
export const change = (name: string, how: "load" | "unload" | "pin" | "unpin") => post<Adapter>(`${pathOf(name)}/${how}`);
export const removeAdapter = (name: string, version: number | null) => remove(pathOf(name) + versioned(version));
export const archiveOf = (name: string, version: number | null) => `${pathOf(name)}/archive${versioned(version)}`;
const versioned = (version: number | null) => (version === null ? "" : `?version=${version}`);

/** A method's fields that have a value: `rank` and `16`. */
export function fieldsOf(method: Adapter["method"]): [string, string][] {
  const empty = (value: unknown) => value === null || (Array.isArray(value) && !value.length);
  return Object.entries(method?.fields ?? {}).filter(([, value]) => !empty(value)).map(([name, value]) => [name, textOf(value)]);
}

/** The method with its first field, the size: `lora, rank 16`. */
export function methodOf({ method }: Adapter): string {
  const [size] = fieldsOf(method);
  return [method?.name ?? "", ...(size ? [size.join(" ")] : [])].join(", ");
}

/** The version that answers to the name alone. */
export const newestOf = ({ versions }: Adapter) => Math.max(...versions);

/** The model by which this version is asked. */
export const modelOf = (adapter: Adapter) => (adapter.version === newestOf(adapter) ? adapter.id : versionedName(adapter.id, adapter.version));
export const versionedName = (name: string, version: number) => `${name}@${version}`;

/** What `versionedName` joined; a name alone means its newest version. */
export function namedVersion(text: string): [name: string, version: number | null] {
  const [, name = text, version] = /^(.+)@(\d+)$/.exec(text) ?? [];
  return [name, version === undefined ? null : Number(version)];
}

/** The figures in what was measured, one level deep: `support.exact_match`; what the page knows by the reader's words. */
export function figuresOf(measurements: Record<string, unknown> | null): [string, string][] {
  const w: Record<string, string> = words.value.adapters.of;
  return Object.entries(measurements ?? {}).flatMap(([name, value]): [string, string][] => {
    if (typeof value === "number") return [[w[name] ?? name, short(value)]];
    if (typeof value !== "object" || value === null) return [];
    const inner = Object.entries(value).filter((entry): entry is [string, number] => typeof entry[1] === "number");
    return inner.map(([of, figure]) => [`${name}.${of}`, short(figure)]);
  });
}

export function textOf(value: unknown): string {
  if (typeof value === "number") return Number.isInteger(value) ? number(value) : number(value, { maximumSignificantDigits: 4 });
  if (Array.isArray(value)) return value.map(textOf).join(", ");
  return typeof value === "string" ? value : JSON.stringify(value);
}
