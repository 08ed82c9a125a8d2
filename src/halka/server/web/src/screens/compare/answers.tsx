// What the methods answered to items of the test split, beside what was expected, with the differences marked.
import { useEffect, useState } from "preact/hooks";
import { Button } from "../../parts/button";
import { SelectField, TextField } from "../../parts/field";
import { OneItem } from "../../parts/item";
import { Loaded, useAction, useLoading } from "../../parts/loading";
import { Failure } from "../../parts/notice";
import { Pager } from "../../parts/pager";
import { changeQuery, wholeNumberIn } from "../../router";
import { fill, typed, words } from "../../words/words";
import { getAnswers, nextOther } from "./comparison";

const PAGE = 3;

/** `labels`: the methods that answered. The address has the first item that is shown. */
export function Answers({ name, labels }: { name: string; labels: string[] }) {
  const w = words.value.compare;
  const start = wholeNumberIn("item") - 1;
  const turn = (to: number) => changeQuery({ item: to ? String(to + 1) : null });
  const items = useLoading(() => getAnswers(name, start, PAGE + 1), [name, start]);
  const there = items.value?.length ?? 0;
  const none = items.value !== null && there === 0 && start === 0;
  return (
    <section class="stack">
      <h2>{w.answers}</h2>
      {none ? <p>{w.noAnswers}</p> : <p class="hint">{w.answersHint} {w.markedHint}</p>}
      <Loaded of={items}>{(all) => all.slice(0, PAGE).map((item) => <OneItem key={item.item} item={item} />)}</Loaded>
      {!none && (
        <div class="row turning">
          <Pager start={start} size={PAGE} there={Math.min(there, PAGE)} more={there > PAGE} onStart={turn} />
          <Jump onItem={(item) => turn(item - 1)} />
          <NextOther name={name} labels={labels} start={start + 1} onItem={turn} />
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

/** Goes to the next item that a method answers otherwise than expected. */
function NextOther({ name, labels, start, onItem }: { name: string; labels: string[]; start: number; onItem: (start: number) => void }) {
  const w = words.value.compare;
  const [label, setLabel] = useState(labels[0] ?? "");
  const [none, setNone] = useState(false);
  const { busy, failure, run } = useAction();
  useEffect(() => setNone(false), [label, start]);
  const find = () => run(async (signal) => {
    const item = await nextOther(name, label, start, signal);
    if (signal.aborted) return;
    setNone(item === null);
    if (item !== null) onItem(item);
  });
  return (
    <form class="row" noValidate onSubmit={(event) => {
      event.preventDefault();
      if (!busy) find();
    }}>
      <SelectField label={w.otherOf} value={label} onValue={setLabel} options={labels.map((value) => ({ value, text: value }))} />
      <Button type="submit" busy={busy}>{w.nextOther}</Button>
      <span class="hint" role="status">{none && w.noOther}</span>
      <Failure error={failure} again={find} />
    </form>
  );
}
