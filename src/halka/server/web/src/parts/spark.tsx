// A line of a few values, as small as a word; what it shows is written beside it.
const [WIDTH, HEIGHT, EDGE] = [96, 24, 2];

export function Spark({ values }: { values: number[] }) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const across = (at: number) => EDGE + (at / Math.max(1, values.length - 1)) * (WIDTH - 2 * EDGE);
  const up = (value: number) => HEIGHT - EDGE - ((value - low) / (high - low || 1)) * (HEIGHT - 2 * EDGE);
  return (
    <svg class="spark" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} aria-hidden="true">
      <polyline points={values.map((value, at) => `${across(at).toFixed(1)},${up(value).toFixed(1)}`).join(" ")} />
    </svg>
  );
}
