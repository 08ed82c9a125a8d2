// What a browser may refuse, such as to keep something.

/** What the call returns; null where it throws. */
export function tried<T>(call: () => T): T | null {
  try {
    return call();
  } catch {
    return null;
  }
}
