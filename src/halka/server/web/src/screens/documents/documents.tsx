// The collections that answers come from; one of them, by its address, searched and kept up to date.
import "./documents.css";
import { useState } from "preact/hooks";
import { collections, paramOf, post } from "../../api";
import { Button } from "../../parts/button";
import { curl } from "../../parts/curl";
import { ErrorText } from "../../parts/error-text";
import { TextField } from "../../parts/field";
import { Loaded, useAction, useLoading } from "../../parts/loading";
import { wrongName } from "../../parts/names";
import { Empty, Failure, Notice } from "../../parts/notice";
import { Terminal } from "../../parts/terminal";
import { go, link } from "../../router";
import { may } from "../../session";
import { count, words } from "../../words/words";
import type { ScreenProps } from "../screens";
import { Heading } from "../shown";
import { COLLECTIONS } from "./collection";
import { OneCollection } from "./one-collection";

export default function Documents({ rest: [name] }: ScreenProps) {
  return name === undefined ? <All /> : <OneCollection key={name} name={name} />;
}

function All() {
  const w = words.value.documents;
  const all = useLoading(collections, []);
  return (
    <div class="stack">
      <Heading title={w.title} lead={w.lead} />
      <Loaded of={all}>
        {(listed) => listed.length ? (
          <div class="cards">
            {listed.map((one) => (
              <article key={one.id} class="sheet stack" aria-label={one.id}>
                <h2 class="named"><a href={link("documents", one.id)}>{one.id}</a></h2>
                {one.error !== undefined && <Notice kind="error"><p lang="en">{one.error}</p></Notice>}
                {one.documents !== null && one.passages !== null && (
                  <p class="hint">{count(w.documents, one.documents)} · {count(w.passages, one.passages)}</p>
                )}
              </article>
            ))}
          </div>
        ) : <Empty icon="documents" title={w.empty} hint={may("manager") ? w.emptyHint : w.emptyForUsers} />}
      </Loaded>
      {may("manager") && <NewCollection />}
      <Terminal commands={[
        { id: "halka", text: "halka docs list --collections collections\nhalka docs add faq ./documents --collections collections" },
        { id: "curl", text: [curl(COLLECTIONS), curl(COLLECTIONS, { json: { name: "faq" } })].join("\n") },
      ]} />
    </div>
  );
}

function NewCollection() {
  const w = words.value.documents;
  const [name, setName] = useState("");
  const [checked, setChecked] = useState(false);
  const { busy, failure, run } = useAction();
  const wrong = checked ? wrongName(name) : null;
  const ofName = paramOf(failure) === "name" ? <ErrorText of={failure} /> : null;
  const submit = (event: Event) => {
    event.preventDefault();
    setChecked(true);
    if (!wrongName(name) && !busy) run(() => post(COLLECTIONS, { name: name.trim() }), () => go(link("documents", name.trim())));
  };
  return (
    <form class="sheet stack" onSubmit={submit} noValidate aria-label={w.newCollection}>
      <h2>{w.newCollection}</h2>
      <TextField label={w.name} value={name} onValue={setName} autocomplete="off" spellcheck={false} hint={w.nameHint} error={wrong ?? ofName} />
      {failure && !ofName && <Failure error={failure} />}
      <div class="row"><Button kind="primary" icon="add" type="submit" busy={busy}>{w.make}</Button></div>
    </form>
  );
}
