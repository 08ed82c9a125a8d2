// What differs between an answer and the reference, word by word.
import { comparable, LETTERS } from "./spelling";

export interface Piece {
  text: string;
  /** Whether the reference has it, at this place. */
  same: boolean;
}

const MOST = 400; // words of either text that are compared

/** The answer in pieces: those of the longest common run of words with the reference, and those that it does not have. */
export function differences(answer: string, reference: string): Piece[] {
  const written = wordsOf(answer);
  const [mine, other] = [written.map(comparable), wordsOf(reference).map(comparable)];
  if (mine.length > MOST || other.length > MOST) return [{ text: answer, same: comparable(answer) === comparable(reference) }];
  const lengths = Array.from({ length: mine.length + 1 }, () => new Uint16Array(other.length + 1));
  const at = (i: number, j: number) => lengths[i]?.[j] ?? 0;
  for (let i = mine.length - 1; i >= 0; i--) {
    for (let j = other.length - 1; j >= 0; j--) {
      const row = lengths[i];
      if (row) row[j] = mine[i] === other[j] ? at(i + 1, j + 1) + 1 : Math.max(at(i + 1, j), at(i, j + 1));
    }
  }
  const pieces: Piece[] = [];
  for (let i = 0, j = 0; i < mine.length; ) {
    const same = j < other.length && mine[i] === other[j];
    if (!same && j < other.length && at(i, j + 1) >= at(i + 1, j)) {
      j++;
      continue;
    }
    const last = pieces.at(-1);
    if (last?.same === same) last.text += written[i];
    else pieces.push({ text: written[i] ?? "", same });
    i++;
    if (same) j++;
  }
  return pieces;
}

const PIECES = new RegExp(`${LETTERS}+|\\s+|.`, "gsu");
const wordsOf = (text: string) => text.match(PIECES) ?? [];
