// A comparison as the API shows it: what `halka compare` wrote.
import { get, type List } from "../../api";
import { isExpected, type Item } from "../../parts/item";
import { link } from "../../router";
import { number } from "../../words/words";

/** A figure with its interval: of scores `value`, of what was measured otherwise `mean`. */
export interface Interval {
  low: number;
  high: number;
}
export type Score = Interval & { value: number };
export type Mean = Interval & { mean: number };

export const PARTS = ["weights", "gradients", "optimizer", "activations"] as const;

export interface Row {
  label: string;
  name: string;
  fields: Record<string, unknown>;
  lr: number | null;
  runs: number;
  scores: Record<string, Score>;
  relative: number | null;
  relative_interval: Score | null;
  trainable: number | null;
  share: number | null;
  peak: Mean | null;
  /** Memory beyond the base's, in bytes. */
  beyond: Mean | null;
  memory: Partial<Record<(typeof PARTS)[number], number>>;
  seconds: Mean | null;
  tokens_per_second: Mean | null;
  forgetting: Mean | null;
  adapter_bytes: number | null;
}

interface Metric {
  name: string;
  higher_is_better: boolean;
  low: number | null;
  high: number | null;
}

export interface Summary {
  primary: Metric;
  metrics: Metric[];
  rows: Row[];
  care: string[];
  intervals: string;
  failed: unknown[];
  provenance: { commits?: string[]; machines?: string[]; versions?: Record<string, string[]>; seeds?: number[]; first?: string; last?: string; source?: string } | null;
}

/** What the list has of each. */
export interface Head {
  name: string;
  experiment: string | null;
  task: string | null;
  base: string | null;
  headline: string | null;
  finished: number | null;
  total: number | null;
  methods: number | null;
  date: string | null;
  error?: string;
}

export interface Comparison extends Head {
  summary: Summary | null;
}

export const COMPARISONS = "/v1/comparisons";
export const pathOf = (name: string) => `${COMPARISONS}${link(name)}`;
export const answersOf = (name: string, start: number, count: number) => `${pathOf(name)}/answers?start=${start}&count=${count}`;
export const listComparisons = (start: number, count: number) => get<List<Head> & { total: number }>(`${COMPARISONS}?start=${start}&count=${count}`);
export const getComparison = (name: string) => get<Comparison>(pathOf(name));
export const getAnswers = async (name: string, start: number, count: number, signal?: AbortSignal) =>
  (await get<List<Item>>(answersOf(name, start, count), signal)).data;

const MANY = 100; // items that one request gives at most

/** The first item from `start` on that a method answers otherwise than expected; null: there is none. */
export async function nextOther(name: string, label: string, start: number, signal: AbortSignal): Promise<number | null> {
  for (let at = start; ; at += MANY) {
    const items = await getAnswers(name, at, MANY, signal);
    const other = items.find((item) => item.answers.some((answer) => answer.label === label && !isExpected(answer, item)));
    if (other) return other.item;
    if (items.length < MANY) return null;
  }
}

/** A relative change, with its sign. */
export const change = (share: number) => number(share, { style: "percent", maximumSignificantDigits: 3, signDisplay: "exceptZero" });
