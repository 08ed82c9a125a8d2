// The adapters of this base, as cards; one of them, by its address, with all that can be done with it.
import "./adapters.css";
import { useState } from "preact/hooks";
import { baseName } from "../../api";
import { Button } from "../../parts/button";
import { curl } from "../../parts/curl";
import { TextField } from "../../parts/field";
import { Loaded, useLoading } from "../../parts/loading";
import { Empty } from "../../parts/notice";
import { Pager } from "../../parts/pager";
import { Terminal } from "../../parts/terminal";
import { changeQuery, go, link, query, wholeNumberIn } from "../../router";
import { may } from "../../session";
import { fill, words } from "../../words/words";
import type { ScreenProps } from "../screens";
import { Heading } from "../shown";
import { ADAPTERS, listAdapters } from "./adapter";
import { Card, searchFor } from "./card";
import { Details } from "./details";
import { Upload } from "./upload";

const FEW = 6; // adapters that are seen at once
const PAGE = 48;

export default function Adapters({ rest: [name] }: ScreenProps) {
  const base = useLoading(baseName, []).value;
  return name === undefined ? <All base={base} /> : <Details key={name} name={name} base={base} />;
}

function All({ base }: { base: string | null }) {
  const w = words.value.adapters;
  const find = query.value.get("find") ?? "";
  const start = wholeNumberIn("from") - 1;
  const adapters = useLoading(() => listAdapters(find, start, PAGE), [], [find, start]);
  const [uploading, setUploading] = useState(false);
  const upload = may("manager") && <Button icon="upload" onClick={() => setUploading(true)}>{w.upload}</Button>;
  return (
    <div class="stack">
      <Heading title={w.title} lead={w.lead}>{adapters.value?.total !== 0 && upload}</Heading>
      <Loaded of={adapters}>
        {({ data, matching, total }) => total
          ? (
            <>
              {(total > FEW || query.value.has("find")) && <Search find={find} matching={matching} total={total} />}
              {matching
                ? <div class="cards">{data.map((adapter) => <Card key={adapter.id} adapter={adapter} base={base} />)}</div>
                : <Empty icon="search" title={w.foundNone} hint={w.foundNoneHint} />}
              {(matching > PAGE || start > 0) && (
                <Pager start={start} size={PAGE} there={data.length} more={start + PAGE < matching} onStart={(to) => changeQuery({ from: to ? String(to + 1) : null })} />
              )}
            </>
          ) : (
            <Empty icon="adapters" title={w.empty} hint={may("manager") ? w.emptyHint : w.emptyForUsers}>
              {may("manager") && <div class="row"><a class="button primary" href={link("train")}>{w.train}</a>{upload}</div>}
            </Empty>
          )}
      </Loaded>
      <Terminal commands={[
        { id: "halka", text: "halka adapters list --store adapters" },
        { id: "curl", text: curl(ADAPTERS) },
      ]} />
      {uploading && <Upload name={null} onDone={(added) => go(link("adapters", added.id))} onClose={() => setUploading(false)} />}
    </div>
  );
}

/** The words in the address, which choose among the adapters. */
function Search({ find, matching, total }: { find: string; matching: number; total: number }) {
  const w = words.value.adapters;
  return (
    <div role="search">
      <TextField label={w.find} hint={w.findHint} type="search" autocomplete="off" value={find} onValue={(text) => go(searchFor(text), { replace: true })} />
      <p class="unseen" role="status">{find && fill(w.foundOf, { n: matching, all: total })}</p>
    </div>
  );
}
