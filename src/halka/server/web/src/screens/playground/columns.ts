// Which models answer, each from which documents; and the address that says so.
import { signal } from "@preact/signals";
import type { Model } from "../../api";

export interface Column {
  id: number;
  model: string;
  /** The collection that it answers from; "": none. */
  collection: string;
}

export const columns = signal<Column[]>([]);
let ids = 0;

export function addColumn(model: string, collection = ""): void {
  columns.value = [...columns.value, { id: ++ids, model, collection }];
}

export function changeColumn(id: number, change: Partial<Column>): void {
  columns.value = columns.value.map((column) => (column.id === id ? { ...column, ...change } : column));
}

export function removeColumn(id: number): void {
  columns.value = columns.value.filter((column) => column.id !== id);
}

/** The base, which the list begins with, and its adapters; no embedder. */
export function answering(models: Model[]): Model[] {
  const [base] = models;
  return base ? [base, ...models.filter((model) => model.parent === base.id)] : [];
}

/** The columns of an address, `model=support&model=base:faq`; without any, the base and its newest adapter. */
export function columnsFrom(query: URLSearchParams, models: Model[]): void {
  columns.value = [];
  const [base, ...adapters] = answering(models);
  for (const text of query.getAll("model")) {
    const colon = models.some((model) => model.id === text) ? -1 : text.lastIndexOf(":");
    addColumn(colon < 0 ? text : text.slice(0, colon), colon < 0 ? "" : text.slice(colon + 1));
  }
  if (columns.value.length) return;
  const newest = adapters.sort((a, b) => b.created - a.created)[0];
  for (const model of [base, newest]) if (model) addColumn(model.id);
}

const LONG = 4000; // characters of a prompt that an address holds; servers take no endless ones

/** The address of these columns with a prompt. */
export function addressOf(prompt: string): string {
  const query = new URLSearchParams();
  for (const { model, collection } of columns.value) query.append("model", collection ? `${model}:${collection}` : model);
  if (prompt && prompt.length <= LONG) query.append("prompt", prompt);
  return `/playground?${query}`;
}
