// Who is signed in. Without keys everybody on this machine is; with keys a cookie stands for the key.
import { signal } from "@preact/signals";
import { ApiError, call, get, post, whenRefused } from "./api";
import { onceRead } from "./once";
import { tried } from "./tried";

export type Role = "monitor" | "user" | "manager" | "admin";

export interface Session {
  tenant: string;
  role: Role;
  /** The id of the key; null without keys. */
  key: string | null;
  /** When the session ends, ISO 8601; null: never by itself. */
  expires: string | null;
  keys_required: boolean;
}

const ABOVE: Record<Role, number> = { monitor: 0, user: 1, manager: 2, admin: 3 };

/** What the server answers to nobody: the same with nulls. */
type Answer = Session | { role: null };

/** Null: nobody, a key is needed. Undefined: not asked yet. */
export const session = signal<Session | null | undefined>(undefined);

/** Why an answer that was being written is not whole: whoever asked is no longer signed in. */
export class SessionOver extends Error {}

/** The browser keeps no cookie of this server, so that nobody can sign in. */
export class NoCookie extends Error {}

export const may = (role: Role) => ABOVE[session.value?.role ?? "monitor"] >= ABOVE[role];

export async function ask(): Promise<void> {
  try {
    const answer = await get<Answer>("/v1/session");
    session.value = answer.role === null ? null : answer;
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 401)) throw error;
    session.value = null;
  }
}

/** The key of a session that ended in the midst of something. */
let ended: string | null = null;

/** Tabs share the cookie: where another signs in or out, this one begins anew, and acts for nobody else. */
const others = new BroadcastChannel("halka-session");
others.onmessage = () => onceRead(lookAgain);

async function lookAgain(): Promise<void> {
  const answer = await get<Answer>("/v1/session").catch(() => null);
  if (answer && answer.role !== null && answer.key !== null && answer.key === (session.peek()?.key ?? ended)) session.value = answer;
  else beginAnew();
}

/** Sign in; the page begins anew, so that nothing stays of who was here before, unless the same key goes on. */
export async function signIn(key: string): Promise<void> {
  await post("/v1/session", { key });
  others.postMessage("");
  const answer = await get<Answer>("/v1/session");
  if (answer.role === null) throw new NoCookie();
  if (answer.key !== null && answer.key === ended) session.value = answer;
  else beginAnew();
}

/** Sign out; nothing stays in this tab, nor in what the browser keeps of it to go back to. */
export async function signOut(): Promise<void> {
  await call("/v1/session", { method: "DELETE" });
  others.postMessage("");
  keepNothing();
  location.assign("/");
}

function beginAnew(): void {
  keepNothing();
  location.reload();
}

/** Nobody is signed in, and nothing is kept of who was. */
function keepNothing(): void {
  session.value = null;
  tried(() => sessionStorage.clear());
}

whenRefused(() => {
  const asking = session.peek();
  return () => {
    if (session.peek() !== asking) return; // another has begun since, be it by the same key
    ended = asking?.key ?? ended;
    session.value = null;
  };
});
