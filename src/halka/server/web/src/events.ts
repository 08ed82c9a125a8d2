// Server-sent events over fetch: a stream that breaks says so, and one that can go on does.
import { ApiError, call, errorIn, failures, type Call } from "./api";

const TIMES = 5; // that what breaks is asked again in a row

export interface ServerEvent {
  id: string | null;
  event: string;
  data: string;
}

/** A stream that ended before its end. */
export class BrokenStream extends Error {}

/** The events of a call, until one is the last. Throws ApiError, and BrokenStream where the last one never came. */
export async function* events(path: string, options: Call, last: (event: ServerEvent) => boolean) {
  const failureOf = failures(path);
  const response = await call(path, { ...options, headers: { Accept: "text/event-stream", ...options.headers } });
  try {
    for await (const event of parsed(response)) {
      if (event.event === "message" || event.event === "error") {
        const body: unknown = event.data.startsWith("{") ? JSON.parse(event.data) : null;
        if (errorIn(body, response.status)) throw failureOf(body, response.status);
      }
      if (last(event)) return void (yield event);
      yield event;
    }
  } catch (error) {
    if (options.signal?.aborted || error instanceof ApiError) throw error;
    throw new BrokenStream();
  }
  throw new BrokenStream();
}

/** The same, asked again after the last event's id whenever it breaks, `TIMES` in a row at most. */
export async function* lastingEvents(path: string, signal: AbortSignal, last: (event: ServerEvent) => boolean) {
  let id: string | null = null;
  for (let failed = 0; ; ) {
    try {
      const headers: Record<string, string> = id === null ? {} : { "Last-Event-ID": id };
      for await (const event of events(path, { headers, signal }, last)) {
        failed = 0;
        id = event.id ?? id;
        yield event;
      }
      return;
    } catch (error) {
      const passing = error instanceof BrokenStream || (error instanceof ApiError && isPassing(error));
      if (!passing || ++failed > TIMES) throw error;
      await new Promise((resolve) => setTimeout(resolve, 250 * 2 ** failed));
      signal.throwIfAborted();
    }
  }
}

/** Whether the same call may go well in a moment; what ends a stream has no status of its own. */
const isPassing = ({ status, code }: ApiError) => [0, 502, 503].includes(status) || ["key_changed", "keys_unreadable", "timeout"].includes(code ?? "");

async function* parsed(response: Response): AsyncGenerator<ServerEvent> {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event: ServerEvent = { id: null, event: "message", data: "" };
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line === "") {
          if (event.data) yield { ...event, data: event.data.slice(0, -1) };
          event = { id: null, event: "message", data: "" };
          continue;
        }
        const [, field, text] = /^([^:]*):? ?(.*)$/s.exec(line) ?? [];
        if (field === "data") event.data += `${text}\n`;
        else if (field === "event") event.event = text ?? "";
        else if (field === "id") event.id = text ?? "";
      }
    }
  } finally {
    void reader.cancel().catch(() => {});
  }
}
