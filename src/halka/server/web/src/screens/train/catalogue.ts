// The methods and settings that GET /v1/methods lists, of which the form is drawn; values of fields as settings.
import { get } from "../../api";
import { typed } from "../../words/words";

export interface Setting {
  name: string;
  /** In `settings` of a job: "rank", "train.lr". */
  path: string;
  flag: string;
  type: "integer" | "number" | "boolean" | "string";
  choices: string[];
  many: boolean;
  optional: boolean;
  default: unknown;
  takes: string;
  help: string;
}

export interface Method {
  name: string;
  /** What it is, in plain words. */
  plain: string;
  meaning: string;
  paper: string;
  lr: number;
  fields: Setting[];
}

export interface Catalogue {
  default: string;
  data: Method[];
  settings: Setting[];
}

/** What stands in the fields, by path; what is not there has its default. */
export type Values = Record<string, string>;

/** What stands for null, as on the command line, where a setting may be null. */
export const NONE = "none";
const isNone = (setting: Setting, text: string) => setting.optional && text.trim().toLowerCase() === NONE;

export const catalogue = () => get<Catalogue>("/v1/methods");

export const fieldsOf = (all: Catalogue, method: string) => [
  ...(all.data.find(({ name }) => name === method)?.fields ?? []),
  ...all.settings,
];

/** Whether a text can be a value of this type; what is wrong beyond that the server says. */
export function fits(setting: Setting, text: string): boolean {
  if (isNone(setting, text)) return true;
  const pieces = setting.many ? text.split(",") : [text];
  if (setting.type === "integer") return pieces.every((piece) => Number.isInteger(typed(piece)));
  if (setting.type === "number") return pieces.every((piece) => Number.isFinite(typed(piece)));
  return true;
}

/** Whether a value cannot be of its setting's type. */
export const anyWrong = (all: Catalogue, method: string, values: Values) =>
  fieldsOf(all, method).some((setting) => values[setting.path]?.trim() && !fits(setting, values[setting.path] ?? ""));

/** The values that differ from their defaults, as `settings` of a job. */
export function settingsOf(all: Catalogue, method: string, values: Values): Record<string, unknown> {
  const settings: Record<string, unknown> = { method };
  for (const setting of fieldsOf(all, method)) {
    const text = values[setting.path]?.trim() ?? "";
    if (text === "" || !fits(setting, text)) continue;
    const value = valueOf(setting, text);
    if (JSON.stringify(value) === JSON.stringify(setting.default)) continue;
    const [group, name] = setting.path.split(".");
    if (name === undefined) settings[setting.path] = value;
    else settings[group ?? ""] = { ...(settings[group ?? ""] as object), [name]: value };
  }
  return settings;
}

function valueOf(setting: Setting, text: string): unknown {
  if (isNone(setting, text)) return null;
  const { type, many } = setting;
  const one = (piece: string) => (type === "integer" || type === "number" ? typed(piece) : type === "boolean" ? piece === "true" : piece.trim());
  return many ? text.split(",").map(one) : one(text);
}

/** The reverse: what the fields show of settings, which may also be flat, as an advice has them. */
export function valuesOf(all: Catalogue, settings: Record<string, unknown>): Values {
  const { train, ...others } = settings;
  const values: Values = {};
  for (const { name, path, default: usual } of fieldsOf(all, String(settings["method"] ?? all.default))) {
    const value = path === name ? others[name] : ((train ?? others) as Record<string, unknown>)[name];
    if (value !== undefined) values[path] = value === null && usual !== null ? NONE : shown(value);
  }
  return values;
}

export const shown = (value: unknown): string => (value === null || value === undefined ? "" : Array.isArray(value) ? value.join(",") : String(value));

/** The flags of `halka train` for these values. */
export function flagsOf(all: Catalogue, method: string, values: Values): string[] {
  return fieldsOf(all, method).flatMap((setting) => {
    const text = values[setting.path]?.trim() ?? "";
    if (text === "" || !fits(setting, text)) return [];
    const value = shown(valueOf(setting, text)) || NONE;
    if (value === (shown(setting.default) || NONE)) return [];
    if (setting.type === "boolean") return [value === "true" ? setting.flag : setting.flag.replace("--", "--no-")];
    return [setting.flag, value];
  });
}
