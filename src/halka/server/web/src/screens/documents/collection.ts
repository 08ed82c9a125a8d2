// Collections and their documents as the API describes them.
import { get, remove, type List } from "../../api";
import { link } from "../../router";

export interface Document {
  id: string;
  passages: number;
  readers: string[];
  tags: string[];
  /** When it was taken in, ISO 8601. */
  added: string;
}

/** What came of a file that was uploaded. */
export interface Taken {
  id: string;
  status: "added" | "changed" | "unchanged" | "removed" | "skipped";
  passages: number;
  reason?: string;
}

export interface Hit {
  document: string;
  page: number | null;
  start: number;
  end: number;
  heading: string;
  text: string;
  score: number;
  cosine: number | null;
  bm25: number | null;
}

export const EVERYONE = "*";
export const COLLECTIONS = "/v1/collections";
export const pathOf = (collection: string) => `${COLLECTIONS}${link(collection)}`;
export const documentsIn = async (collection: string) => (await get<List<Document>>(`${pathOf(collection)}/documents`)).data;
export const removeCollection = (collection: string) => remove(pathOf(collection));
export const removeDocument = (collection: string, document: string) => remove(`${pathOf(collection)}/documents${link(...document.split("/"))}`);
