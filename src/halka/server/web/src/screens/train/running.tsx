// A training as it goes: how far it is, its losses, its speed.
import { ENDED, type Job, type Step } from "../../jobs/jobs";
import { LineChart } from "../../parts/chart";
import { Progress, Waiting } from "../../parts/progress";
import { bytes, duration, fill, number, percent, short, words } from "../../words/words";
import { Tile } from "./needs";

const DRAWN = 240; // points of a curve; more are drawn as the means of neighbours

export function Running({ job, steps }: { job: Job; steps: Step[] }) {
  const w = words.value.train;
  const last = steps.at(-1);
  if (!last) return job.status === "running" ? <Waiting label={w.beginning} /> : null;
  const ended = ENDED.includes(job.status);
  const checked = steps.filter((step) => step.validation !== null && step.validation !== undefined);
  const scored = typeof checked.at(-1)?.score === "number";
  const saved = typeof last.computed === "number" ? 1 - last.computed / last.tokens : 0;
  const left = ended ? null : timeLeft(steps);
  return (
    <section class="sheet stack" aria-label={w.progress}>
      {!ended && <Progress label={fill(w.stepOf, { step: last.step, steps: last.steps })} share={last.step / last.steps} />}
      <dl class="tiles">
        {ended && <Tile name={w.stepsDone} value={fill(w.stepOf, { step: last.step, steps: last.steps })} />}
        <Tile name={w.loss} value={short(last.loss)} />
        {checked.length > 0 && <Tile name={w.validationLoss} value={short(checked.at(-1)?.validation ?? 0)} hint={scored ? undefined : bestOf(checked, "validation")} />}
        {scored && <Tile name={w.validationScore} value={short(checked.at(-1)?.score ?? 0)} hint={bestOf(checked, "score")} />}
        <Tile name={w.speed} value={number(last.tokens_per_second, { maximumFractionDigits: 0 })} hint={w.perSecond} />
        {left !== null && <Tile name={w.left} value={fill(w.about, { value: duration(left) })} />}
        {ended && <Tile name={w.took} value={duration(last.seconds)} />}
        <Tile name={w.memory} value={bytes(last.memory)} />
        {saved >= 0.005 && <Tile name={w.saved} value={percent(saved)} hint={w.ofTokens} />}
      </dl>
      <LineChart title={w.curve} x={w.step} y={w.loss} series={[
        { name: w.loss, points: thinned(steps.map((step) => ({ x: step.step, y: step.loss }))) },
        ...(checked.length ? [{ name: w.validationLoss, points: checked.map((step) => ({ x: step.step, y: step.validation as number })) }] : []),
      ]} />
    </section>
  );
}

function bestOf(checked: Step[], by: "validation" | "score"): string | undefined {
  const best = checked.filter((step) => step.best).at(-1);
  if (!best || best === checked.at(-1)) return undefined;
  return fill(words.value.train.bestAt, { value: short(best[by] ?? 0), step: best.step });
}

/** The seconds that the steps to come need, by the last twenty. */
function timeLeft(steps: Step[]): number | null {
  const last = steps.at(-1);
  const before = steps.at(-21) ?? steps[0];
  if (!last || !before || last.step === before.step) return null;
  return ((last.seconds - before.seconds) / (last.step - before.step)) * (last.steps - last.step);
}

interface Point {
  x: number;
  y: number;
}

function thinned(points: Point[]): Point[] {
  const many = Math.ceil(points.length / DRAWN);
  if (many <= 1) return points;
  return Array.from({ length: Math.ceil(points.length / many) }, (_, at) => {
    const some = points.slice(at * many, (at + 1) * many);
    return { x: some.at(-1)?.x ?? 0, y: some.reduce((sum, point) => sum + point.y, 0) / some.length };
  });
}
