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

/** Show the columns that were there before a reload; `answered` are those with answers, of which some may be closed. */
export function restoreColumns(before: Column[], answered: Column[]): void {
  ids = Math.max(0, ...[...before, ...answered].map(({ id }) => id));
  columns.value = before;
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

/** Show the columns of an address, `model=support&model=base:faq`; without any, the base and its newest adapter.
 *
 * Those that are there already keep their answers.
 */
export function columnsFrom(query: URLSearchParams, models: Model[]): void {
  const before = columns.value;
  const [base, ...adapters] = answering(models);
  const newest = adapters.sort((a, b) => b.created - a.created)[0];
  const wanted = query.getAll("model");
  const texts = wanted.length ? wanted : [base, newest].flatMap((model) => (model ? [model.id] : []));
  columns.value = [];
  for (const text of texts) {
    const colon = models.some((model) => model.id === text) ? -1 : text.lastIndexOf(":");
    const [model, collection] = colon < 0 ? [text, ""] : [text.slice(0, colon), text.slice(colon + 1)];
    const same = before.find((column) => column.model === model && column.collection === collection && !columns.value.includes(column));
    if (same) columns.value = [...columns.value, same];
    else addColumn(model, collection);
  }
}

/** The address of these columns; what is written or was asked stands in no history. */
export function addressOf(): string {
  const query = new URLSearchParams();
  for (const { model, collection } of columns.value) query.append("model", collection ? `${model}:${collection}` : model);
  return `/playground?${query}`;
}
