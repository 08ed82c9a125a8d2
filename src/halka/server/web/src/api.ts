// Every call of the server's API: JSON in and out, errors in the API's own words.
import { onceRead } from "./once";

/** What the API says is wrong. `status` is 0 where no answer came at all; the code says why. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string | null = null,
    readonly param: string | null = null,
  ) {
    super(message);
  }
}

export interface Call {
  method?: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  json?: unknown;
  form?: FormData;
  headers?: Record<string, string>;
  signal?: AbortSignal | undefined;
}

let refusal = (): (() => void) => () => {};

/** Register what is called as a call begins, and returns what is done where the server does not know who sent it. */
export function whenRefused(begin: () => () => void): void {
  refusal = begin;
}

/** The response of a call. Throws ApiError for any other than a 2xx, and where the server cannot be reached. */
export async function call(path: string, { method, json, form, headers, signal }: Call = {}): Promise<Response> {
  const body = form ?? (json === undefined ? null : JSON.stringify(json));
  const failureOf = failures(path);
  let response: Response;
  try {
    response = await fetch(path, {
      method: method ?? (body === null ? "GET" : "POST"),
      body,
      signal: signal ?? null,
      headers: {
        "X-Halka-Page": "1", // what no other site can make a browser send
        ...(json === undefined ? {} : { "Content-Type": "application/json" }),
        ...headers,
      },
      credentials: "same-origin",
      redirect: "error",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("", 0, "unreachable");
  }
  if (response.ok) return response;
  throw failureOf(await response.json().catch(() => null), response.status);
}

export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await call(path, { signal })).json() as Promise<T>;
}

export async function post<T>(path: string, json: unknown = {}, signal?: AbortSignal): Promise<T> {
  return (await call(path, { method: "POST", json, signal })).json() as Promise<T>;
}

export async function patch<T>(path: string, json: unknown): Promise<T> {
  return (await call(path, { method: "PATCH", json })).json() as Promise<T>;
}

export async function upload<T>(path: string, form: FormData): Promise<T> {
  return (await call(path, { form })).json() as Promise<T>;
}

export async function remove<T>(path: string): Promise<T> {
  return (await call(path, { method: "DELETE" })).json() as Promise<T>;
}

/** What `{"error": …}` says, be it a response's or a stream's last event. */
export function errorIn(body: unknown, status: number): ApiError | null {
  const error = (body as { error?: Record<string, unknown> } | null)?.error;
  if (!error || typeof error["message"] !== "string") return null;
  const text = (value: unknown) => (typeof value === "string" ? value : null);
  return new ApiError(error["message"], status, text(error["code"]), text(error["param"]));
}

/** What makes, of a call that begins now, the error of a response that is no 2xx, or that ends a stream, by its body.
 *
 * Who is refused has to sign in, unless they have meanwhile.
 */
export function failures(path: string): (body: unknown, status: number) => ApiError {
  const refused = refusal();
  return (body, status) => {
    const error = errorIn(body, status) ?? new ApiError(`HTTP ${status}`, status);
    const nobody = status === 401 || ["session_ended", "invalid_api_key"].includes(error.code ?? "");
    if (nobody && path !== "/v1/session") onceRead(refused);
    return error;
  };
}

/** What parameter an error is about, without the kind of the job that has it. */
export function paramOf(error: unknown, kind = ""): string | null {
  const param = error instanceof ApiError ? error.param : null;
  return param?.startsWith(`${kind}.`) ? param.slice(kind.length + 1) : param;
}

/** Whether an error says that what was asked for does not exist. */
export const isMissing = (error: unknown): boolean => error instanceof ApiError && error.status === 404;

/** Throws an error of its own for a file that has changed since it was chosen, which browsers refuse to send. */
export async function checkUnchanged(files: Iterable<File>): Promise<void> {
  for (const file of files) {
    await file.slice(0, 1).arrayBuffer().catch(() => {
      throw new ApiError(file.name, 0, "changed");
    });
  }
}

// ── what several screens ask for ─────────────────────────────────────────────────────────────────────────────────────

export interface List<T> {
  data: T[];
}

export interface Model {
  id: string;
  /** The base of an adapter; null of the base itself, which comes first, and of the embedder. */
  parent: string | null;
  created: number;
}

export interface Collection {
  id: string;
  documents: number | null;
  passages: number | null;
  error?: string;
}

export const models = async () => (await get<List<Model>>("/v1/models")).data;
export const baseName = async () => (await models())[0]?.id ?? null;
export const collections = async () => (await get<List<Collection>>("/v1/collections")).data;
