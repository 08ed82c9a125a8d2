// What is taken into collections, one file after the other, whatever screen is shown meanwhile.
import { signal, type Signal } from "@preact/signals";
import type { List } from "../../api";
import { send } from "../../sending";
import { pathOf, type Taken } from "./collection";

export interface Outcome {
  name: string;
  taken?: Taken;
  failure?: unknown;
}

/** What is under way, and what came of the files before it. */
export interface Uploading {
  under: { name: string; at: number; of: number; share: number } | null;
  outcomes: Outcome[];
}

const uploads = new Map<string, Signal<Uploading>>();

export function uploadingInto(collection: string): Signal<Uploading> {
  const known = uploads.get(collection) ?? signal<Uploading>({ under: null, outcomes: [] });
  uploads.set(collection, known);
  return known;
}

/** Leave out what came of a collection's files, which are gone with it. */
export function forget(collection: string): void {
  uploads.delete(collection);
}

/** Send the files, all with these readers and tags; resolves, when all are through, to what came of them. */
export async function takeInto(collection: string, files: File[], readers: string[], tags: string[]): Promise<Outcome[]> {
  const uploading = uploadingInto(collection);
  uploading.value = { under: null, outcomes: [] };
  for (const [at, file] of files.entries()) {
    const form = new FormData();
    form.append("files", file, file.name);
    for (const reader of readers) form.append("readers", reader);
    for (const tag of tags) form.append("tags", tag);
    const step = (share: number) => {
      uploading.value = { ...uploading.value, under: { name: file.name, at: at + 1, of: files.length, share } };
    };
    step(0);
    const outcome = await send<List<Taken>>(`${pathOf(collection)}/documents`, form, step).then(
      ({ data: [taken] }): Outcome => ({ name: file.name, ...(taken ? { taken } : {}) }),
      (failure: unknown): Outcome => ({ name: file.name, failure }),
    );
    uploading.value = { ...uploading.value, outcomes: [...uploading.value.outcomes, outcome] };
  }
  uploading.value = { ...uploading.value, under: null };
  return uploading.value.outcomes;
}
