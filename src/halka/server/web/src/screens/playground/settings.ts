// What is written and not asked yet: the message, and how models are to answer, which holds for every message.
import { signal } from "@preact/signals";
import { keepThroughReloads } from "../../kept";
import { typed } from "../../words/words";

export interface Sampling {
  temperature: string;
  top_p: string;
  max_tokens: string;
  seed: string;
}

export const RANGES: Record<keyof Sampling, { min: number; max: number; whole: boolean }> = {
  temperature: { min: 0, max: 2, whole: false },
  top_p: { min: 0, max: 1, whole: false },
  max_tokens: { min: 1, max: 2 ** 31 - 1, whole: true },
  seed: { min: -(2 ** 31), max: 2 ** 31 - 1, whole: true },
};
export const NAMES = Object.keys(RANGES) as (keyof Sampling)[];

export const draft = signal("");
/** What stands before every conversation; "": what the base's chat template has. */
export const system = signal("");
export const sampling = signal<Sampling>({ temperature: "", top_p: "", max_tokens: "", seed: "" });

keepThroughReloads("playground-settings-1", () => ({ draft: draft.value, system: system.value, sampling: sampling.value }), (before) => {
  draft.value = before.draft;
  system.value = before.system;
  sampling.value = before.sampling;
});

export const isSet = (name: keyof Sampling) => sampling.value[name].trim() !== "";

export function isWrong(name: keyof Sampling): boolean {
  const { min, max, whole } = RANGES[name];
  const value = typed(sampling.value[name]);
  return isSet(name) && !(value >= min && value <= max && (!whole || Number.isInteger(value)));
}
