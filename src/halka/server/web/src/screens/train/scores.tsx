// An evaluation's scores: adapter and base side by side, each with its interval; and the answers that were scored.
import { useState } from "preact/hooks";
import { answersOf, predictionsOf, type Evaluated, type Job } from "../../jobs/jobs";
import { Icon } from "../../parts/icons";
import { Intervals } from "../../parts/intervals";
import { OneItem } from "../../parts/item";
import { Loaded, useLoading } from "../../parts/loading";
import { Pager } from "../../parts/pager";
import { count, words } from "../../words/words";

const PAGE = 3; // examples that are seen at once

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
      <Answers id={job.id} />
    </div>
  );
}

/** What was answered, which is loaded when somebody asks for it. */
function Answers({ id }: { id: string }) {
  const [open, setOpen] = useState(false);
  return (
    <details class="more" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>{words.value.train.answersOfAll}</summary>
      {open && <Items id={id} />}
    </details>
  );
}

/** A few examples at a time with the answers to them; all of it as a file. */
function Items({ id }: { id: string }) {
  const { train: w, compare } = words.value;
  const [start, setStart] = useState(0);
  const items = useLoading(() => answersOf(id, w.base), [id]);
  const all = items.value ?? [];
  return (
    <div class="stack">
      <p class="hint">{compare.markedHint}</p>
      <Loaded of={items}>{() => all.slice(start, start + PAGE).map((item) => <OneItem key={item.item} item={item} />)}</Loaded>
      <div class="row between">
        {all.length > PAGE && <Pager start={start} size={PAGE} there={Math.min(PAGE, all.length - start)} more={start + PAGE < all.length} onStart={setStart} />}
        <a class="button" href={predictionsOf(id)} download={`${id}.jsonl`}><Icon name="download" />{w.downloadAnswers}</a>
      </div>
    </div>
  );
}
