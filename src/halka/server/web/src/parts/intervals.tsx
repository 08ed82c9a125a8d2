// Scores with their 95 % intervals, drawn on one scale and written beside it.
import { fill, percent, short, words } from "../words/words";

export interface Scored {
  name: string;
  value: number | null;
  low: number | null;
  high: number | null;
  /** How it is known, in a few words. */
  note?: string;
  chosen?: boolean;
}

const WIDTH = 300;

export function Intervals({ caption, rows }: { caption: string; rows: Scored[] }) {
  const { parts } = words.value;
  const top = Math.max(1, ...rows.map((row) => row.high ?? row.value ?? 0));
  const written = top <= 1 ? percent : short;
  const across = (value: number) => 6 + (Math.max(0, value) / top) * (WIDTH - 12);
  return (
    <div class="intervals">
      <table>
        <caption>{caption}</caption>
        <tbody>
          {rows.map((row, at) => (
            <tr key={row.name} class={row.chosen ? "chosen" : ""}>
              <th scope="row">{row.name}{row.note && <span class="hint">{row.note}</span>}</th>
              <td class="drawn">
                <svg viewBox={`0 0 ${WIDTH} 20`} class={`s${at % 4}`} aria-hidden="true" preserveAspectRatio="none">
                  <line class="whole" x1={across(0)} x2={across(top)} y1="10" y2="10" />
                  {row.low !== null && row.high !== null && <line class="span" x1={across(row.low)} x2={across(row.high)} y1="10" y2="10" />}
                  {row.value !== null && <line class="value" x1={across(row.value)} x2={across(row.value)} y1="2" y2="18" />}
                </svg>
              </td>
              <td class="figure">
                <strong>{row.value === null ? "–" : written(row.value)}</strong>
                {row.low !== null && row.high !== null && (
                  <span class="hint">{fill(parts.interval, { low: written(row.low), high: written(row.high) })}</span>
                )}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
