// How many tokens a training's batches compute, as its preview counted them: kept in this tab, since no job says it.
import type { Packing } from "./preview";

const key = (id: string) => `halka.packing.${id}`;

export function remember(id: string, packing: Packing | null): void {
  try {
    if (packing) sessionStorage.setItem(key(id), JSON.stringify(packing));
  } catch {
    // a browser that keeps nothing
  }
}

export function remembered(id: string): Packing | null {
  try {
    return JSON.parse(sessionStorage.getItem(key(id)) ?? "null") as Packing | null;
  } catch {
    return null;
  }
}
