// An adapter in the list: what it is, how well it did, whether it is loaded.
import { Notice } from "../../parts/notice";
import { Spark } from "../../parts/spark";
import { Terms } from "../../parts/terms";
import { link } from "../../router";
import { ago, bytes, fill, number, short, words } from "../../words/words";
import { figuresOf, methodOf, modelOf, type Adapter } from "./adapter";

export function Card({ adapter, base }: { adapter: Adapter; base: string | null }) {
  const w = words.value.adapters;
  return (
    <article class="sheet adapter" aria-label={adapter.id}>
      <header>
        <h2 class="named"><a href={link("adapters", adapter.id)}>{adapter.id}</a></h2>
        <Badges adapter={adapter} />
      </header>
      {adapter.error && <Notice kind="error"><p lang="en">{adapter.error}</p></Notice>}
      {!adapter.error && <p>{adapter.method ? methodOf(adapter) : w.noCard}</p>}
      <Terms of={[
        ...figuresOf(adapter.measurements).slice(0, 3),
        [w.loss, lossesOf(adapter)],
        [w.base, adapter.base],
        [w.size, bytes(adapter.bytes)],
        [w.parameters, adapter.parameters === null ? null : number(adapter.parameters, { notation: "compact", maximumSignificantDigits: 3 })],
        [w.version, fill(w.versionOf, { n: adapter.version, all: adapter.versions.length })],
        [w.changed, ago(adapter.created_at)],
      ]} />
      <div class="row">
        {!adapter.error && <TryIt adapter={adapter} base={base} />}
        <a class="button quiet" href={link("adapters", adapter.id)} aria-label={fill(w.openOne, { name: adapter.id })}>{w.open}</a>
      </div>
    </article>
  );
}

/** How the loss fell in training; null: nobody knows. */
function lossesOf({ losses }: Adapter) {
  const [first, ...more] = losses ?? [];
  const last = more.at(-1);
  if (first === undefined || last === undefined) return null;
  return <><Spark values={[first, ...more]} /> <span class="range">{fill(words.value.adapters.lossFromTo, { from: short(first), to: short(last) })}</span></>;
}

/** The address of the adapters that a search finds. */
export const searchFor = (text: string) => `${link("adapters")}?${new URLSearchParams({ find: text })}`;

export function Badges({ adapter }: { adapter: Adapter }) {
  const w = words.value.adapters;
  return (
    <p class="badges">
      {adapter.error !== undefined && <span class="badge danger">{w.damaged}</span>}
      {adapter.pinned && <span class="badge gold">{w.pinned}</span>}
      {adapter.loaded && !adapter.pinned && <span class="badge">{w.loaded}</span>}
      {adapter.task && <span class="badge">{adapter.task}</span>}
      {adapter.tags.map((tag) => <a key={tag} class="badge" href={searchFor(`#${tag}`)}>#{tag}</a>)}
    </p>
  );
}

/** Opens the Playground with the adapter beside the base, or an older version beside the newest. */
export function TryIt({ adapter, base }: { adapter: Adapter; base: string | null }) {
  const w = words.value.adapters;
  const model = modelOf(adapter);
  const newest = model === adapter.id;
  const beside = newest ? base : adapter.id;
  const label = fill(newest ? w.tryOne : w.tryOlder, { name: model, newest: adapter.id });
  const query = new URLSearchParams([...(beside ? [["model", beside]] : []), ["model", model]]);
  return <a class="button primary" href={`/playground?${query}`} aria-label={label}>{w.tryIt}</a>;
}
