// Turns the pages of a long list, of which some are there at a time.
import { fill, words } from "../words/words";
import { Button } from "./button";

/** `there`: how many are shown from `start` on; `more`: whether others follow. */
export function Pager({ start, size, there, more, onStart }: {
  start: number;
  size: number;
  there: number;
  more: boolean;
  onStart: (start: number) => void;
}) {
  const w = words.value.parts;
  return (
    <div class="row">
      <Button busy={start === 0} onClick={() => onStart(Math.max(0, start - size))}>{w.before}</Button>
      <span class="hint" role="status">{there > 0 && fill(w.range, { from: start + 1, to: start + there })}</span>
      <Button busy={!more} onClick={() => onStart(start + size)}>{w.next}</Button>
    </div>
  );
}
