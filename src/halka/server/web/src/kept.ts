// What this tab keeps through a reload, for the key that is signed in and for nobody else.
import { effect, untracked } from "@preact/signals";
import { session } from "./session";
import { tried } from "./tried";

/** Once somebody is signed in, restore what they had before a reload; from then on keep `now`, or nothing where it is null.
 *
 * The name changes with the shape of what is kept.
 */
export function keepThroughReloads<T>(name: string, now: () => T | null, restore: (before: T) => void): void {
  let restored = false;
  effect(() => {
    const key = session.value?.key;
    if (key === undefined) return;
    if (!restored) {
      restored = true;
      const before = stored<T>(name);
      if (before?.key === key) untracked(() => restore(before.value));
    }
    const value = now();
    store(name, value === null ? null : { key, value });
  });
}

function stored<T>(name: string): { key: string | null; value: T } | null {
  return tried(() => JSON.parse(sessionStorage.getItem(`halka.${name}`) ?? "null"));
}

function store(name: string, entry: object | null): void {
  tried(() => { // it lasts until a reload where the browser keeps nothing, or not as much
    sessionStorage.removeItem(`halka.${name}`);
    if (entry) sessionStorage.setItem(`halka.${name}`, JSON.stringify(entry));
  });
}
