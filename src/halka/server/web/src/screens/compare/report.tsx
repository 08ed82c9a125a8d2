// One comparison: what it came to, its table and plots, what limits it, and the answers side by side.
import { curl } from "../../parts/curl";
import { SelectField } from "../../parts/field";
import { Loaded, useLoading } from "../../parts/loading";
import { Notice } from "../../parts/notice";
import { Table } from "../../parts/table";
import { Terminal } from "../../parts/terminal";
import { Terms } from "../../parts/terms";
import { changeQuery, link, query } from "../../router";
import { bytes, duration, fill, moment, number, percent, short, words } from "../../words/words";
import { Heading } from "../shown";
import { Answers } from "./answers";
import { answersOf, getComparison, pathOf, change, type Interval, type Row, type Summary } from "./comparison";
import { Forgetting, Memory, Quality } from "./plots";

export function Report({ name }: { name: string }) {
  const w = words.value.compare;
  const comparison = useLoading(() => getComparison(name), [name]);
  return (
    <div class="stack report">
      <p><a href={link("compare")}>{w.all}</a></p>
      <Loaded of={comparison}>
        {(one) => (
          <>
            <Heading title={one.name} lead={[one.base, one.task].filter(Boolean).join(" · ")} />
            {one.error !== undefined && <Notice kind="error"><p lang="en">{one.error}</p></Notice>}
            {one.headline && <p class="headline" lang="en">{one.headline}</p>}
            {one.summary && <Figures summary={one.summary} />}
            {one.summary && <Answers name={name} labels={one.summary.rows.map((row) => row.label)} />}
            {one.summary && <Origin summary={one.summary} />}
          </>
        )}
      </Loaded>
      <Terminal commands={[
        { id: "halka", text: "halka compare experiment.yaml -o comparisons/mine" },
        { id: "curl", text: [curl(pathOf(name)), curl(answersOf(name, 0, 20))].join("\n") },
      ]} />
    </div>
  );
}

function Figures({ summary }: { summary: Summary }) {
  const w = words.value.compare;
  const metrics = summary.metrics ?? [summary.primary];
  const shown = metrics.find((metric) => metric.name === query.value.get("metric")) ?? summary.primary;
  const share = shown.high === 1 ? percent : short;
  const between = ({ low, high }: Interval, as: (value: number) => string) => <span class="hint range">{fill(w.range, { low: as(low), high: as(high) })}</span>;
  return (
    <>
      {metrics.length > 1 && (
        <SelectField label={w.metric} value={shown.name} onValue={(name) => changeQuery({ metric: name === summary.primary.name ? null : name })}
          options={metrics.map(({ name, higher_is_better }) => ({ value: name, text: higher_is_better ? name : fill(w.lower, { name }) }))} />
      )}
      <Table caption={w.table} rows={summary.rows} keyOf={(row) => row.label} columns={[
        { title: w.method, cell: (row) => row.label },
        { title: shown.name, numeric: true, cell: ({ scores: { [shown.name]: score } }) => score && <>{share(score.value)} {between(score, share)}</> },
        ...(shown.name === summary.primary.name ? [{ title: w.relative, numeric: true, cell: ({ relative, relative_interval: range }: Row) => relative !== null && <>{percent(relative)} {range && between(range, percent)}</> }] : []),
        { title: w.trainable, numeric: true, cell: ({ trainable, share }) => trainable !== null && <>{number(trainable, { notation: "compact", maximumSignificantDigits: 3 })} {share !== null && <span class="hint range">{percent(share)}</span>}</> },
        { title: w.beyond, numeric: true, cell: ({ beyond }) => beyond && bytes(beyond.mean) },
        { title: w.time, numeric: true, cell: ({ seconds }) => seconds && duration(seconds.mean) },
        { title: w.forgetting, numeric: true, cell: ({ forgetting }) => forgetting && <>{change(forgetting.mean)} {between(forgetting, change)}</> },
        { title: w.file, numeric: true, cell: (row) => row.adapter_bytes !== null && bytes(row.adapter_bytes) },
      ]} />
      <p class="hint">{w.rangesHint}</p>
      <div class="plots">
        <Quality rows={summary.rows} metric={shown.name} as={share} />
        <div class="stack">
          <Memory rows={summary.rows} />
          <Forgetting rows={summary.rows} />
        </div>
      </div>
      {summary.care?.length > 0 && (
        <section class="sheet stack">
          <h2>{w.caveats}</h2>
          <ul class="caveats" lang="en">{summary.care.map((text) => <li key={text}>{text}</li>)}</ul>
        </section>
      )}
    </>
  );
}

function Origin({ summary }: { summary: Summary }) {
  const w = words.value.compare;
  const from = summary.provenance;
  return (
    <details class="sheet">
      <summary>{w.origin}</summary>
      <Terms of={[
        [w.machine, from?.machines?.join("; ")],
        [w.versions, Object.entries(from?.versions ?? {}).map(([name, versions]) => `${name} ${versions.join(", ")}`).join("; ")],
        [w.commits, from?.commits?.join(", ")],
        [w.data, from?.source],
        [w.when, from?.last && moment(from.last)],
        [w.intervals, summary.intervals && <span lang="en">{summary.intervals}</span>],
      ]} />
    </details>
  );
}
