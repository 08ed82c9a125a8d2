// All texts of the page in the chosen language; numbers and dates as that language writes them.
import { computed, signal } from "@preact/signals";
import { language, type Language } from "../choices";
import type en from "./en";

/** The same keys with other texts: what every language must be. */
export type Same<T> = { readonly [Key in keyof T]: T[Key] extends string ? string : Same<T[Key]> };
export type Words = Same<typeof en>;

const LANGUAGES: Record<Language, () => Promise<{ default: Words }>> = {
  en: () => import("./en"),
  bn: () => import("./bn"),
};
const current = signal<{ language: Language; words: Words } | null>(null);

/** Whether a language's file is gone, as after an update of the server. */
export const renewed = signal(false);

/** Load a language's texts; the page is drawn anew when they are there. If they are not, the language before stays. */
export async function speak(wanted: Language): Promise<void> {
  try {
    const { default: words } = await LANGUAGES[wanted]();
    if (wanted === language.peek()) current.value = { language: wanted, words };
  } catch (error) {
    const before = current.peek();
    if (!before) throw error;
    renewed.value = true;
    if (wanted === language.peek()) language.value = before.language;
  }
}

export const words = computed<Words>(() => {
  if (!current.value) throw new Error("no language is loaded yet");
  return current.value.words;
});

/** A text with its `{names}` replaced. */
export function fill(text: string, values: Record<string, string | number>): string {
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => {
    const value = values[name];
    return value === undefined ? whole : typeof value === "number" ? number(value) : value;
  });
}

/** The form of a text that fits a number, with `{n}` replaced by it. */
export function count(forms: { one: string; other: string }, n: number): string {
  return fill(new Intl.PluralRules(locale()).select(n) === "one" ? forms.one : forms.other, { n });
}

// ── numbers and dates ────────────────────────────────────────────────────────────────────────────────────────────────

const locale = () => ({ en: "en-GB", bn: "bn-BD" })[current.value?.language ?? "en"];

export function number(value: number, options: Intl.NumberFormatOptions = {}): string {
  const plain = options.notation === "compact" ? locale().replace("en-GB", "en") : locale(); // 4.88M, not 4.88m
  return new Intl.NumberFormat(plain, { maximumFractionDigits: 2, ...options }).format(value);
}

/** A number as somebody types it, in Latin or Bengali digits; NaN: none. */
export function typed(text: string): number {
  const latin = text.trim().replace(/[০-৯]/g, (digit) => String(digit.charCodeAt(0) - "০".charCodeAt(0)));
  return latin === "" ? NaN : Number(latin);
}

/** Words that commas or spaces divide, as tags are typed. */
export const labelsIn = (text: string) => text.split(/[\s,]+/).filter(Boolean);

/** Three figures at most: 0.123, 1.23, 12.3, 1,230. */
export function short(value: number): string {
  return number(value, { maximumSignificantDigits: 3 });
}

/** A share, of which a small one is never shown as nothing. */
export function percent(share: number): string {
  if (share > 0 && share < 0.001) return `< ${percent(0.001)}`;
  return number(share, { style: "percent", maximumFractionDigits: 1 });
}

export function bytes(size: number): string {
  const units = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"] as const;
  const step = Math.min(Math.floor(Math.log10(Math.max(size, 1)) / 3), units.length - 1);
  return number(size / 1000 ** step, { style: "unit", unit: units[step] ?? "byte", unitDisplay: step ? "short" : "long", maximumFractionDigits: step ? 1 : 0 });
}

const narrow = () => (current.value?.language === "en" ? ("narrow" as const) : ("short" as const));

export function duration(seconds: number): string {
  if (seconds < 60) return number(seconds, { style: "unit", unit: "second", unitDisplay: narrow(), maximumFractionDigits: seconds < 10 ? 1 : 0 });
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return number(minutes, { style: "unit", unit: "minute", unitDisplay: narrow() });
  const hours = number(Math.floor(minutes / 60), { style: "unit", unit: "hour" });
  return minutes % 60 ? `${hours} ${number(minutes % 60, { style: "unit", unit: "minute", unitDisplay: narrow() })}` : hours;
}

const dateOf = (when: number | string) => new Date(typeof when === "number" ? when * 1000 : when);

/** A moment, of Unix seconds or an ISO text; a text that is no date, as a Card may have it, stays as it is. */
export function moment(when: number | string): string {
  const date = dateOf(when);
  if (Number.isNaN(date.getTime())) return String(when);
  return new Intl.DateTimeFormat(locale(), { dateStyle: "medium", timeStyle: "short" }).format(date);
}

/** How long ago a moment was, or in how long it will be; as `moment`, of any text. */
export function ago(when: number | string): string {
  const seconds = (dateOf(when).getTime() - Date.now()) / 1000;
  if (Number.isNaN(seconds)) return String(when);
  const units = [["day", 86400], ["hour", 3600], ["minute", 60]] as const;
  const [unit, size] = units.find(([, size]) => Math.abs(seconds) >= size) ?? ["second", 1];
  return new Intl.RelativeTimeFormat(locale(), { numeric: "auto" }).format(Math.round(seconds / size), unit);
}
