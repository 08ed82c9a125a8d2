// An evaluation's scores: adapter and base side by side, each with its interval.
import type { Evaluated, Job } from "../../jobs/jobs";
import { Intervals } from "../../parts/intervals";
import { count, words } from "../../words/words";

export function Scores({ job }: { job: Job<Evaluated> }) {
  const w = words.value.train;
  const { scores = {}, base_scores: base = {}, by_adapter, examples } = job.result ?? { examples: 0 };
  const name = ((job.settings["adapters"] as string[] | undefined) ?? []).join(", ") || w.base;
  const all = [...(by_adapter ?? [{ adapter: name, scores }]), { adapter: null, scores: base }];
  const metrics = [...new Set(all.flatMap((one) => Object.keys(one.scores)))];
  return (
    <div class="stack scores">
      {metrics.map((metric) => (
        <Intervals key={metric} caption={metric.replaceAll("_", " ")} rows={all.flatMap(({ adapter, scores: { [metric]: score } }) => (
          score ? [{ name: adapter ?? w.base, ...score }] : []
        ))} />
      ))}
      <p class="hint">{count(w.scoredOn, examples)}</p>
    </div>
  );
}
