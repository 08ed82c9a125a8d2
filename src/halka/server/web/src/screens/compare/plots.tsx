// Three plots of a comparison; their values stand in its table.
import type { ComponentChildren } from "preact";
import { ticks } from "../../parts/chart";
import { useWidth } from "../../parts/width";
import { bytes, number, words } from "../../words/words";
import { PARTS, change, type Mean, type Row } from "./comparison";

const HEIGHT = 360;
const EDGE = { left: 56, right: 16, top: 16, bottom: 40 };
const LETTER = 7.5; // pixels of a letter, and of a line of them
const BELOW = 15;
const HEIGHTS = [0, -8, 8, -15, 15, -22, 22, -30, 30]; // of a name, from its dot
const TICK = 56; // pixels for a number below
const LINE = 34; // pixels of a method in a plot of lines
const NAMES = 118; // pixels for their names

function Plot({ title, hint, children }: { title: string; hint: string; children: (width: number) => ComponentChildren }) {
  const { ref, width } = useWidth<HTMLDivElement>(520);
  return (
    <figure class="sheet chart plot">
      <figcaption><strong>{title}</strong> <span class="hint">{hint}</span></figcaption>
      <div ref={ref}>{children(width)}</div>
    </figure>
  );
}

/** Score against trained parameters, on a logarithmic scale; the base, which trains none, is a line. */
export function Quality({ rows, metric, as }: { rows: Row[]; metric: string; as: (value: number) => string }) {
  const w = words.value.compare;
  const scored = rows.flatMap((row) => (row.scores[metric] ? [{ row, score: row.scores[metric] }] : []));
  const dots = scored.filter(({ row }) => (row.trainable ?? 0) > 0).sort((a, b) => (a.row.trainable ?? 0) - (b.row.trainable ?? 0));
  if (!dots.length) return null;
  const base = scored.find(({ row }) => row.trainable === 0)?.score.value;
  const sizes = dots.map(({ row }) => Math.log10(row.trainable ?? 1));
  const [from, to] = [Math.floor(Math.min(...sizes)), Math.ceil(Math.max(...sizes, Math.min(...sizes) + 0.1))];
  const top = Math.max(...scored.map(({ score }) => score.high));
  const bottom = Math.min(0, ...scored.map(({ score }) => score.low));
  return (
    <Plot title={w.quality} hint={w.qualityHint}>
      {(width) => {
        const across = (power: number) => EDGE.left + ((power - from) / (to - from)) * (width - EDGE.left - EDGE.right);
        const every = Math.ceil(((to - from + 1) * TICK) / (width - EDGE.left)); // powers a label
        const up = (value: number) => HEIGHT - EDGE.bottom - ((value - bottom) / (top - bottom || 1)) * (HEIGHT - EDGE.top - EDGE.bottom);
        return (
          <svg viewBox={`0 0 ${width} ${HEIGHT}`} role="img" aria-label={w.quality}>
            <g class="grid">
              {ticks(bottom, top).map((value) => (
                <g key={value}>
                  <line x1={EDGE.left} x2={width - EDGE.right} y1={up(value)} y2={up(value)} />
                  <text x={EDGE.left - 8} y={up(value)} text-anchor="end" dominant-baseline="middle">{as(value)}</text>
                </g>
              ))}
              {Array.from({ length: to - from + 1 }, (_, at) => from + at).filter((power) => (to - power) % every === 0).map((power) => (
                <text key={power} x={across(power)} y={HEIGHT - EDGE.bottom + 18} text-anchor={power === to ? "end" : "middle"} dx={power === to ? EDGE.right : 0}>{number(10 ** power, { notation: "compact" })}</text>
              ))}
            </g>
            {base !== undefined && <line class="base" x1={EDGE.left} x2={width - EDGE.right} y1={up(base)} y2={up(base)} />}
            {placed(dots.map(({ row, score }) => ({ label: row.label, x: across(Math.log10(row.trainable ?? 1)), y: up(score.value), high: up(score.high), low: up(score.low) })), width).map((dot, at) => (
              <g key={dot.label} class={`s${at % 4}`}>
                <line class="span" x1={dot.x} x2={dot.x} y1={dot.low} y2={dot.high} />
                <circle class="dot" cx={dot.x} cy={dot.y} r="5" />
                <text class="own" x={dot.nameX} y={dot.nameY} text-anchor={dot.left ? "end" : "start"} dominant-baseline="middle">{dot.label}</text>
              </g>
            ))}
          </svg>
        );
      }}
    </Plot>
  );
}

/** Dots with places for their names: beside them, at the first height where they touch no other name and no dot. */
function placed<Dot extends { label: string; x: number; y: number }>(dots: Dot[], width: number) {
  const taken = dots.map(({ x, y }) => ({ from: x - 6, to: x + 6, y, half: 6 }));
  return dots.map((dot) => {
    const long = dot.label.length * LETTER;
    const sides = dot.x > width / 2 ? [true, false] : [false, true];
    const places = HEIGHTS.flatMap((up) => sides.map((left) => {
      const from = left ? dot.x - 10 - long : dot.x + 10;
      return { left, from, to: from + long, y: dot.y + up, half: BELOW / 2 };
    }));
    const free = places.filter(({ from, to }) => from >= 0 && to <= width).find((place) => !taken.some((other) => (
      place.from < other.to && place.to > other.from && Math.abs(place.y - other.y) < place.half + other.half
    )));
    const place = free ?? places[0];
    if (place) taken.push(place);
    return { ...dot, left: place?.left ?? false, nameX: dot.x + (place?.left ? -10 : 10), nameY: place?.y ?? dot.y };
  });
}

/** Where each method's memory goes, as parts of a bar. */
export function Memory({ rows }: { rows: Row[] }) {
  const w = words.value.compare;
  const whole = (row: Row) => PARTS.reduce((sum, part) => sum + (row.memory[part] ?? 0), 0);
  const measured = rows.filter((row) => whole(row) > 0);
  if (!measured.length) return null;
  const most = Math.max(...measured.map(whole));
  return (
    <Plot title={w.memory} hint={w.memoryHint}>
      {(width) => (
        <>
          <p class="keys">{PARTS.map((part, at) => <span key={part} class={`series s${at}`}>{w.parts[part]}</span>)}</p>
          <svg viewBox={`0 0 ${width} ${measured.length * LINE}`} role="img" aria-label={w.memory}>
            {measured.map((row, at) => {
              let x = NAMES;
              const y = at * LINE;
              return (
                <g key={row.label}>
                  <text class="name" x="0" y={y + LINE / 2} dominant-baseline="middle">{row.label}</text>
                  {PARTS.map((part, number) => {
                    const size = ((row.memory[part] ?? 0) / most) * (width - NAMES - 64);
                    x += size;
                    return <rect key={part} class={`bar s${number}`} x={x - size} y={y + 7} width={Math.max(size, 0)} height={LINE - 14}><title>{`${w.parts[part]}: ${bytes(row.memory[part] ?? 0)}`}</title></rect>;
                  })}
                  <text x={x + 6} y={y + LINE / 2} dominant-baseline="middle">{bytes(whole(row))}</text>
                </g>
              );
            })}
          </svg>
        </>
      )}
    </Plot>
  );
}

/** How much worse each method's model predicts other text than the base does. */
export function Forgetting({ rows }: { rows: Row[] }) {
  const w = words.value.compare;
  const measured = rows.filter((row): row is Row & { forgetting: Mean } => row.forgetting !== null && row.trainable !== 0);
  if (!measured.length) return null;
  const least = Math.min(0, ...measured.map((row) => row.forgetting.low));
  const most = Math.max(...measured.map((row) => row.forgetting.high), least + 1e-9);
  return (
    <Plot title={w.forgetting} hint={w.forgettingHint}>
      {(width) => {
        const across = (value: number) => NAMES + 4 + ((value - least) / (most - least)) * (width - NAMES - 76);
        return (
          <svg viewBox={`0 0 ${width} ${measured.length * LINE}`} role="img" aria-label={w.forgetting}>
            <line class="base" x1={across(0)} x2={across(0)} y1="0" y2={measured.length * LINE} />
            {measured.map(({ label, forgetting: { mean, low, high } }, at) => {
              const y = at * LINE + LINE / 2;
              return (
                <g key={label} class="s0">
                  <text class="name" x="0" y={y} dominant-baseline="middle">{label}</text>
                  <line class="span" x1={across(low)} x2={across(high)} y1={y} y2={y} />
                  <circle class="dot" cx={across(mean)} cy={y} r="5" />
                  <text x={across(high) + 10} y={y} dominant-baseline="middle">{change(mean)}</text>
                </g>
              );
            })}
          </svg>
        );
      }}
    </Plot>
  );
}
