// Reports of `halka compare`, to be browsed; one of them, by its address.
import "./compare.css";
import { useRef } from "preact/hooks";
import { curl } from "../../parts/curl";
import { Loaded, useLoading } from "../../parts/loading";
import { Empty, Notice } from "../../parts/notice";
import { Pager } from "../../parts/pager";
import { Code, Terminal } from "../../parts/terminal";
import { changeQuery, link, wholeNumberIn } from "../../router";
import { count, fill, moment, words } from "../../words/words";
import type { ScreenProps } from "../screens";
import { Heading } from "../shown";
import { COMPARISONS, listComparisons, type Head } from "./comparison";
import { Report } from "./report";

const PAGE = 24;
const FIRST = "halka compare experiment.yaml -o comparisons/mine\nhalka serve --base smollm2-135m --store adapters --comparisons comparisons";

export default function Compare({ rest: [name] }: ScreenProps) {
  return name === undefined ? <All /> : <Report key={name} name={name} />;
}

function All() {
  const w = words.value.compare;
  const start = wholeNumberIn("from") - 1;
  const all = useLoading(() => listComparisons(start, PAGE), [start]);
  const turn = (to: number) => changeQuery({ from: to ? String(to + 1) : null });
  const listed = useRef(0); // stays while a page is loaded, as does what turns it, which has the focus
  listed.current = all.value?.total ?? listed.current;
  return (
    <div class="stack">
      <Heading title={w.title} lead={w.lead} />
      <Loaded of={all}>
        {({ data, total }) => total ? (
          <div class="cards">{data.map((one) => <Card key={one.name} of={one} />)}</div>
        ) : <Empty icon="compare" title={w.empty} hint={w.emptyHint}><Code text={FIRST} /></Empty>}
      </Loaded>
      {(listed.current > PAGE || start > 0) && (
        <Pager start={start} size={PAGE} there={all.value?.data.length ?? 0} more={start + PAGE < listed.current} onStart={turn} />
      )}
      <Terminal commands={[{ id: "halka", text: FIRST }, { id: "curl", text: curl(COMPARISONS) }]} />
    </div>
  );
}

function Card({ of }: { of: Head }) {
  const w = words.value.compare;
  return (
    <article class="sheet stack" aria-label={of.name}>
      <h2 class="named"><a href={link("compare", of.name)}>{of.name}</a></h2>
      {of.error !== undefined ? <Notice kind="error"><p lang="en">{of.error}</p></Notice> : (
        <>
          <p lang="en">{of.headline}</p>
          <p class="hint">
            {[
              of.base, of.task, ...(of.methods === null ? [] : [count(w.methods, of.methods)]),
              ...(of.finished !== null && of.total !== null && of.finished < of.total ? [fill(w.unfinished, { n: of.finished, all: of.total })] : []),
              ...(of.date ? [moment(of.date)] : []),
            ].filter(Boolean).join(" · ")}
          </p>
        </>
      )}
    </article>
  );
}
