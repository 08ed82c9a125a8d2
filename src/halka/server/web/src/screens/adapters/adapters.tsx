// The adapters of this base, as cards; one of them, by its address, with all that can be done with it.
import "./adapters.css";
import { useState } from "preact/hooks";
import { models } from "../../api";
import { Button } from "../../parts/button";
import { curl } from "../../parts/curl";
import { Loaded, useLoading } from "../../parts/loading";
import { Empty } from "../../parts/notice";
import { Terminal } from "../../parts/terminal";
import { go, link } from "../../router";
import { may } from "../../session";
import { words } from "../../words/words";
import type { ScreenProps } from "../screens";
import { Heading } from "../shown";
import { ADAPTERS, listAdapters } from "./adapter";
import { Card } from "./card";
import { Details } from "./details";
import { Upload } from "./upload";

export default function Adapters({ rest: [name] }: ScreenProps) {
  const base = useLoading(async () => (await models())[0]?.id ?? null, []).value;
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
          ? <div class="cards">{all.map((adapter) => <Card key={adapter.id} adapter={adapter} base={base} />)}</div>
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
