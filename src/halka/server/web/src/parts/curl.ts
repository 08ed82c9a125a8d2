// A call of the API as a command of curl.
import { session } from "../session";
import { quoted } from "./terminal";

export interface Curl {
  method?: "POST" | "PATCH" | "DELETE";
  json?: unknown;
  /** Fields of a form; one that begins with "@" is a file. */
  form?: [string, string][];
  /** The file that takes the answer. */
  into?: string;
}

export function curl(path: string, { method, json, form = [], into }: Curl = {}): string {
  const bodied = json !== undefined || form.length > 0;
  const implied = bodied ? "POST" : undefined;
  return [
    `curl ${method && method !== implied ? `-X ${method} ` : ""}${quoted(location.origin + path)}`,
    ...(session.value?.keys_required ? ['-H "Authorization: Bearer $HALKA_API_KEY"'] : []),
    ...(json === undefined ? [] : ["-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(json))}`]),
    ...form.map(([name, value]) => `-F ${quoted(`${name}=${value.startsWith("@") ? fileOf(value.slice(1)) : value}`)}`),
    ...(into === undefined ? [] : [`-o ${quoted(into)}`]),
  ].join(" \\\n  ");
}

/** A file as curl reads its name, in which some characters mean something. */
function fileOf(name: string): string {
  const apart = name.startsWith("-") ? `./${name}` : name;
  return /[;,"\\]/.test(apart) ? `@"${apart.replace(/["\\]/g, "\\$&")}"` : `@${apart}`;
}
