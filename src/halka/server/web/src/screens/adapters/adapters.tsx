// The adapters of this base, as cards; one of them, by its address, with all that can be done with it.
import "./adapters.css";
import { useState } from "preact/hooks";
import { baseName } from "../../api";
import { Button } from "../../parts/button";
import { curl } from "../../parts/curl";
import { TextField } from "../../parts/field";
import { Loaded, useLoading } from "../../parts/loading";
import { Empty } from "../../parts/notice";
import { Terminal } from "../../parts/terminal";
import { go, link, query } from "../../router";
import { may } from "../../session";
import { fill, words } from "../../words/words";
import type { ScreenProps } from "../screens";
import { Heading } from "../shown";
import { ADAPTERS, listAdapters, matches, type Adapter } from "./adapter";
import { Card, searchFor } from "./card";
import { Details } from "./details";
import { Upload } from "./upload";

const FEW = 6; // adapters that are seen at once

export default function Adapters({ rest: [name] }: ScreenProps) {
  const base = useLoading(baseName, []).value;
  return name === undefined ? <All base={base} /> : <Details key={name} name={name} base={base} />;
}

function All({ base }: { base: string | null }) {
  const w = words.value.adapters;
  const adapters = useLoading(listAdapters, []);
  const [uploading, setUploading] = useState(false);
  const upload = may("manager") && <Button icon="upload" onClick={() => setUploading(true)}>{w.upload}</Button>;
  return (
    <div class="stack">
      <Heading title={w.title} lead={w.lead}>{adapters.value?.length !== 0 && upload}</Heading>
      <Loaded of={adapters}>
        {(all) => all.length
          ? <Shelf all={all} base={base} />
          : (
            <Empty icon="adapters" title={w.empty} hint={may("manager") ? w.emptyHint : w.emptyForUsers}>
              {may("manager") && <div class="row"><a class="button primary" href={link("train")}>{w.train}</a>{upload}</div>}
            </Empty>
          )}
      </Loaded>
      <Terminal commands={[
        { id: "halka", title: "halka", text: "halka adapters list --store adapters" },
        { id: "curl", title: "curl", text: curl(ADAPTERS) },
      ]} />
      {uploading && <Upload name={null} onDone={(added) => go(link("adapters", added.id))} onClose={() => setUploading(false)} />}
    </div>
  );
}

/** The adapters that the search in the address finds; where there are few, none is offered. */
function Shelf({ all, base }: { all: Adapter[]; base: string | null }) {
  const w = words.value.adapters;
  const search = query.value.get("find") ?? "";
  const shown = all.filter((adapter) => matches(adapter, search));
  return (
    <>
      {(all.length > FEW || query.value.has("find")) && (
        <div role="search">
          <TextField label={w.find} hint={w.findHint} type="search" autocomplete="off" value={search} onValue={(text) => go(searchFor(text), { replace: true })} />
          <p class="unseen" role="status">{search && fill(w.foundOf, { n: shown.length, all: all.length })}</p>
        </div>
      )}
      {shown.length
        ? <div class="cards">{shown.map((adapter) => <Card key={adapter.id} adapter={adapter} base={base} />)}</div>
        : <Empty icon="search" title={w.foundNone} hint={w.foundNoneHint} />}
    </>
  );
}
