// An evaluation's scores: adapter and base side by side, each with its interval.
import type { Evaluated, Job } from "../../jobs/jobs";
import { Intervals } from "../../parts/intervals";
import { count, words } from "../../words/words";

export function Scores({ job }: { job: Job<Evaluated> }) {
  const w = words.value.train;
  const { scores = {}, base_scores: base = {}, examples } = job.result ?? { examples: 0 };
  const name = ((job.settings["adapters"] as string[] | undefined) ?? []).join(", ") || w.base;
  return (
    <div class="stack scores">
      {Object.entries(scores).map(([metric, score]) => (
        <Intervals key={metric} caption={metric.replaceAll("_", " ")} rows={[
          { name, ...score },
          ...(base[metric] ? [{ name: w.base, ...base[metric] }] : []),
        ]} />
      ))}
      <p class="hint">{count(w.scoredOn, examples)}</p>
    </div>
  );
}
