// Names of adapters and collections, as the server takes them.
import { words } from "../words/words";

const NAME = /^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?$/;

/** What is wrong with a name; null: nothing that is seen here. */
export function wrongName(name: string): string | null {
  const w = words.value.parts;
  return !name.trim() ? w.nameMissing : NAME.test(name.trim()) ? null : w.nameWrong;
}
