// What the methods answered to items of the test split, beside what was expected, with the differences marked.
import { useState } from "preact/hooks";
import { Button } from "../../parts/button";
import { TextField } from "../../parts/field";
import { Loaded, useLoading } from "../../parts/loading";
import { Pager } from "../../parts/pager";
import { fill, typed, words } from "../../words/words";
import { getAnswers, type Item } from "./comparison";
import { differences } from "./differences";

const PAGE = 3;

export function Answers({ name }: { name: string }) {
  const w = words.value.compare;
  const [start, setStart] = useState(0);
  const items = useLoading(() => getAnswers(name, start, PAGE + 1), [name, start]);
  const there = items.value?.length ?? 0;
  const none = items.value !== null && there === 0 && start === 0;
  return (
    <section class="stack">
      <h2>{w.answers}</h2>
      {none ? <p>{w.noAnswers}</p> : <p class="hint">{w.answersHint}</p>}
      <Loaded of={items}>{(all) => all.slice(0, PAGE).map((item) => <OneItem key={item.item} item={item} />)}</Loaded>
      {!none && (
        <div class="row turning">
          <Pager start={start} size={PAGE} there={Math.min(there, PAGE)} more={there > PAGE} onStart={setStart} />
          <Jump onItem={(item) => setStart(item - 1)} />
        </div>
      )}
      {items.value !== null && there === 0 && start > 0 && <p role="status">{fill(w.noItem, { n: start + 1 })}</p>}
    </section>
  );
}

/** Goes to an item by its number. */
function Jump({ onItem }: { onItem: (item: number) => void }) {
  const w = words.value.compare;
  const [item, setItem] = useState("");
  return (
    <form class="row" noValidate onSubmit={(event) => {
      event.preventDefault();
      if (Number.isInteger(typed(item)) && typed(item) > 0) onItem(typed(item));
    }}>
      <TextField label={w.toItem} inputMode="numeric" autocomplete="off" value={item} onValue={setItem} />
      <Button type="submit">{w.show}</Button>
    </form>
  );
}

function OneItem({ item }: { item: Item }) {
  const w = words.value.compare;
  return (
    <article class="sheet stack" aria-label={fill(w.item, { n: item.item + 1 })}>
      <h3>{fill(w.item, { n: item.item + 1 })}</h3>
      <p class="plain-text" dir="auto">{item.prompt}</p>
      <div class="answers">
        <div class="expected">
          <h4>{w.expected}</h4>
          <p class="plain-text" dir="auto">{item.reference}</p>
        </div>
        {item.answers.map(({ label, prediction }) => (
          <div key={label}>
            <h4>{label} {prediction.trim() === item.reference.trim() && <span class="badge">{w.same}</span>}</h4>
            <p class="plain-text" dir="auto">
              {prediction ? differences(prediction, item.reference).map(({ text, same }, at) => (same ? text : <mark key={at}>{text}</mark>)) : <span class="hint">{w.nothing}</span>}
            </p>
          </div>
        ))}
      </div>
    </article>
  );
}
