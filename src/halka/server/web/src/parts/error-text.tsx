// What went wrong, in the API's words, which are English; before them what they mean, where the reader's language is another.
import { ApiError } from "../api";
import { BrokenStream } from "../events";
import { NoCookie, SessionOver } from "../session";
import { fill, words } from "../words/words";

export function ErrorText({ of }: { of: unknown }) {
  const meaning = meaningOf(of);
  if (!meaning) return <span lang={isOfApi(of) ? "en" : undefined}>{messageOf(of)}</span>;
  return <>{meaning} <span class="hint" lang="en">{messageOf(of)}</span></>;
}

/** Whether it is said by the API, which speaks English whatever the page does. */
const isOfApi = (error: unknown): error is ApiError => error instanceof ApiError && error.status !== 0;

/** The meaning of an error's code, else of its status; "" where the API's words are the reader's. */
function meaningOf(error: unknown): string {
  if (!isOfApi(error)) return "";
  const w: Record<string, string> = words.value.errors;
  return w[error.code ?? ""] ?? w[`status_${error.status}`] ?? "";
}

function messageOf(error: unknown): string {
  const { shell } = words.value;
  if (error instanceof ApiError && error.code === "changed") return fill(shell.fileChanged, { name: error.message });
  if (error instanceof ApiError) return error.status === 0 ? shell.unreachable : error.message;
  if (error instanceof BrokenStream) return shell.brokenStream;
  if (error instanceof SessionOver) return shell.sessionOver;
  if (error instanceof NoCookie) return shell.noCookie;
  return `${shell.unexpected}: ${error instanceof Error ? error.message : String(error)}`;
}
