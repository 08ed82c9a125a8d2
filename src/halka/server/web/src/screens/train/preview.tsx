// What was understood of a file: its tokens with loss marked, lengths, repeats, and rows that cannot be used.
import { useState } from "preact/hooks";
import { Choice } from "../../parts/field";
import { Notice } from "../../parts/notice";
import { Table } from "../../parts/table";
import { count, fill, number, percent, words } from "../../words/words";

interface Listed<T> {
  count: number;
  first: T[];
}

export interface Packing {
  batches: number;
  padded: number;
  useful: number;
  computed: number;
}

interface Pair {
  first: string;
  second: string;
  same_answer: boolean;
}

interface Span {
  text: string;
  tokens: number;
  loss: boolean;
  special: boolean;
  cut: number;
}

export interface Preview {
  shape: string;
  fields: string[];
  unread: string[];
  examples: number;
  lengths: {
    total: number; shortest: number; median: number; longest: number; longest_at: string;
    quantiles: Record<string, number>; bins: { first: number; last: number; examples: number }[];
    max_length: number | null; too_long: number; lost: number;
  };
  loss_share: number;
  packing: Packing | null;
  problems: Listed<{ where: string; line: number | null; reason: string }>;
  repeated: Listed<Pair>;
  shared: Listed<Pair> | null;
  notes: string[];
  shown: { where: string; tokens: number; spans: Span[]; more: number }[];
}

/** `tooLong`: what becomes of examples that are too long. */
export function PreviewOf({ preview, tooLong }: { preview: Preview; tooLong: string }) {
  const w = words.value.train;
  const { lengths, packing, problems, repeated, shared } = preview;
  const saved = packing && packing.useful > packing.computed ? 1 - packing.computed / packing.useful : 0;
  return (
    <div class="stack preview">
      <p>
        {fill(w.understood, { examples: count(w.examples, preview.examples), shape: preview.shape })}
        {" "}{fill(w.fieldsRead, { fields: preview.fields.join(", ") })}
        {preview.unread.length > 0 && <>{" "}{fill(w.fieldsUnread, { fields: preview.unread.join(", ") })}</>}
      </p>
      {preview.notes.map((note) => <Notice key={note} kind="warning"><p lang="en">{note}</p></Notice>)}
      {lengths.too_long > 0 && (
        <Notice kind="warning">
          <p>{fill(w.tooLong[tooLong === "drop" || tooLong === "error" ? tooLong : "cut"], { examples: count(w.examples, lengths.too_long), most: lengths.max_length ?? 0, lost: lengths.lost })}</p>
        </Notice>
      )}
      {problems.count > 0 && <Problems problems={problems} />}
      {repeated.count > 0 && <Pairs title={count(w.repeated, repeated.count)} pairs={repeated} />}
      {shared && shared.count > 0 && <Pairs title={count(w.shared, shared.count)} pairs={shared} />}
      <Examples preview={preview} />
      <div class="row facts-row">
        <Histogram lengths={lengths} />
        <dl class="pairs">
          <Pair name={w.tokensInAll} value={number(lengths.total)} />
          <Pair name={w.lossShare} value={percent(preview.loss_share)} />
          <Pair name={w.median} value={number(lengths.median)} />
          <Pair name={w.longest} value={`${number(lengths.longest)} (${placeOf(lengths.longest_at)})`} />
          {packing && saved > 0 && <Pair name={w.saved} value={fill(w.savedOf, { share: percent(saved), useful: packing.useful, computed: packing.computed })} />}
        </dl>
      </div>
    </div>
  );
}

/** "data.jsonl:67" as a line, where it is one. */
function placeOf(where: string): string {
  const [, line] = /(?:^|:)(?:row )?(\d+)$/.exec(where) ?? [];
  return line === undefined ? where : fill(words.value.train.lineAt, { n: Number(line) });
}

const Pair = ({ name, value }: { name: string; value: string }) => <div><dt>{name}</dt><dd>{value}</dd></div>;

function Problems({ problems }: { problems: Preview["problems"] }) {
  const w = words.value.train;
  return (
    <details class="found" open>
      <summary><strong>{count(w.problems, problems.count)}</strong></summary>
      <Table caption={count(w.problems, problems.count)} rows={problems.first} keyOf={(row) => row.where} columns={[
        { title: w.line, cell: (row) => (row.line === null ? row.where : number(row.line)) },
        { title: w.reason, cell: (row) => <span lang="en">{row.reason}</span> },
      ]} />
    </details>
  );
}

function Pairs({ title, pairs }: { title: string; pairs: Listed<Pair> }) {
  const w = words.value.train;
  return (
    <details class="found">
      <summary><strong>{title}</strong></summary>
      <Table caption={title} rows={pairs.first} keyOf={(row) => `${row.first} ${row.second}`} columns={[
        { title: w.second, cell: (row) => placeOf(row.second) },
        { title: w.firstOf, cell: (row) => placeOf(row.first) },
        { title: w.answers, cell: (row) => (row.same_answer ? w.sameAnswer : w.otherAnswer) },
      ]} />
    </details>
  );
}

/** One example at a time, as the model reads it: what carries loss is marked. */
function Examples({ preview }: { preview: Preview }) {
  const w = words.value.train;
  const [at, choose] = useState("0");
  const shown = preview.shown[Number(at)] ?? preview.shown[0];
  if (!shown) return null;
  return (
    <section class="examples" aria-label={w.asRead}>
      <div class="row between">
        <h3>{w.asRead}</h3>
        {preview.shown.length > 1 && (
          <Choice label={w.example} value={at} onValue={choose}
            options={preview.shown.map((_, index) => ({ value: String(index), text: number(index + 1) }))} />
        )}
      </div>
      <p class="hint">{w.markedHint}</p>
      <div class="tokens plain-text" dir="auto" tabIndex={0} role="region" aria-label={`${w.asRead}: ${placeOf(shown.where)}`}>
        {shown.spans.map((span, index) => {
          const text = span.cut > 0 ? `${span.text} …` : span.text;
          const inside = span.special ? <span class="special">{text}</span> : text;
          return span.loss ? <mark key={index}>{inside}</mark> : <span key={index}>{inside}</span>;
        })}
        {shown.more > 0 && " …"}
      </div>
      <p class="hint">{placeOf(shown.where)} · {count(w.tokens, shown.tokens)}</p>
    </section>
  );
}

const WIDTH = 320;
const HEIGHT = 96;

/** How many examples are how long; the same in words for who cannot see it. */
function Histogram({ lengths }: { lengths: Preview["lengths"] }) {
  const w = words.value.train;
  const most = Math.max(...lengths.bins.map((bin) => bin.examples));
  const wide = WIDTH / lengths.bins.length;
  const said = lengths.bins.map((bin) => fill(w.bin, { first: bin.first, last: bin.last, examples: count(w.examples, bin.examples) })).join("; ");
  return (
    <figure class="histogram">
      <figcaption>{w.lengths}</figcaption>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT + 18}`} role="img" aria-label={`${w.lengths}: ${said}`}>
        {lengths.bins.map((bin, at) => {
          const high = most ? (bin.examples / most) * (HEIGHT - 4) : 0;
          return <rect key={bin.first} x={at * wide + 1} y={HEIGHT - high} width={Math.max(1, wide - 2)} height={high} rx="2" />;
        })}
        <line x1="0" x2={WIDTH} y1={HEIGHT} y2={HEIGHT} />
        <text x="0" y={HEIGHT + 14}>{number(lengths.shortest)}</text>
        <text x={WIDTH} y={HEIGHT + 14} text-anchor="end">{number(lengths.longest)}</text>
      </svg>
    </figure>
  );
}
