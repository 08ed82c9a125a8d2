// The memory and time that a training would need, before it begins.
import { Notice } from "../../parts/notice";
import { bytes, count, duration, fill, number, percent, words } from "../../words/words";

export interface Needs {
  parameters: number;
  trained: number;
  memory: { all: number };
  available: number;
  fits: boolean;
  steps: number;
  seconds_a_step: number | null;
  seconds: number | null;
  stored: number;
}

export function NeedsOf({ needs }: { needs: Needs }) {
  const w = words.value.train;
  return (
    <>
      {!needs.fits && <Notice kind="warning"><p>{w.doesNotFit}</p></Notice>}
      <dl class="tiles">
        <Tile name={w.time} value={needs.seconds === null ? w.unknown : fill(w.about, { value: duration(needs.seconds) })} hint={count(w.steps, needs.steps)} />
        <Tile name={w.memory} value={bytes(needs.memory.all)} hint={fill(w.free, { value: bytes(needs.available) })} />
        <Tile name={w.trains} value={percent(needs.trained / needs.parameters)} hint={fill(w.parameters, { n: number(needs.trained) })} />
        <Tile name={w.fileSize} value={bytes(needs.stored)} />
      </dl>
    </>
  );
}

export function Tile({ name, value, hint }: { name: string; value: string; hint?: string | undefined }) {
  return <div><dt>{name}</dt><dd>{value}{hint && <span class="hint">{hint}</span>}</dd></div>;
}
