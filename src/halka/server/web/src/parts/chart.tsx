// A line chart in SVG; the same values stand in a table below it for who cannot see it.
import { short, words } from "../words/words";
import { Table } from "./table";
import { useWidth } from "./width";

export interface Series {
  name: string;
  points: { x: number; y: number }[];
}

const HEIGHT = 240;
const EDGE = { left: 56, right: 12, top: 12, bottom: 32 };

export function LineChart({ title, x, y, series }: { title: string; x: string; y: string; series: Series[] }) {
  const { ref, width } = useWidth<HTMLElement>(640);
  const drawn = series.map((one) => ({ ...one, points: one.points.filter((point) => Number.isFinite(point.y)) }));
  const all = drawn.flatMap((one) => one.points);
  if (!all.length) return null;
  const [left, right] = range(all.map((point) => point.x));
  const [low, high] = range(all.map((point) => point.y));
  const across = (value: number) => EDGE.left + ((value - left) / (right - left)) * (width - EDGE.left - EDGE.right);
  const up = (value: number) => HEIGHT - EDGE.bottom - ((value - low) / (high - low)) * (HEIGHT - EDGE.top - EDGE.bottom);
  return (
    <figure class="chart" ref={ref}>
      <figcaption>
        <strong>{title}</strong>
        {drawn.map((one, at) => <span key={one.name} class={`series s${at % 4}`}>{one.name}</span>)}
      </figcaption>
      <svg viewBox={`0 0 ${width} ${HEIGHT}`} role="img" aria-label={title}>
        {ticks(low, high).map((value) => (
          <g key={value} class="grid">
            <line x1={EDGE.left} x2={width - EDGE.right} y1={up(value)} y2={up(value)} />
            <text x={EDGE.left - 8} y={up(value)} text-anchor="end" dominant-baseline="middle">{short(value)}</text>
          </g>
        ))}
        {ticks(left, right).map((value) => (
          <text key={value} class="tick" x={across(value)} y={HEIGHT - EDGE.bottom + 18} text-anchor="middle">{short(value)}</text>
        ))}
        {drawn.map((one, at) => (
          <polyline key={one.name} class={`line s${at % 4}`} points={one.points.map((point) => `${across(point.x)},${up(point.y)}`).join(" ")} />
        ))}
        {drawn.map((one, at) => one.points.length === 1 && one.points[0] && (
          <circle key={one.name} class={`dot s${at % 4}`} cx={across(one.points[0].x)} cy={up(one.points[0].y)} r="3" />
        ))}
      </svg>
      <details>
        <summary>{words.value.parts.chartValues}</summary>
        <Table caption={title} columns={[
          { title: x, cell: (row) => short(row.x), numeric: true },
          ...drawn.map((one) => ({ title: drawn.length > 1 ? one.name : y, cell: (row: Row) => valueAt(one, row.x), numeric: true })),
        ]} rows={[...new Set(all.map((point) => point.x))].sort((a, b) => a - b).map((value) => ({ x: value }))} keyOf={(row) => String(row.x)} />
      </details>
    </figure>
  );
}

interface Row {
  x: number;
}

function valueAt(one: Series, x: number): string {
  const point = one.points.find((candidate) => candidate.x === x);
  return point ? short(point.y) : "";
}

/** The least and the greatest, never the same. */
function range(values: number[]): [number, number] {
  const low = values.reduce((a, b) => Math.min(a, b));
  const high = values.reduce((a, b) => Math.max(a, b));
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

/** Round values within a range, four or so. */
export function ticks(low: number, high: number): number[] {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, at) => (first + at) * step);
}
