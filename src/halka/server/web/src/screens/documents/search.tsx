// What a question finds in a collection, and why: how near a passage's meaning is, and which words it shares.
import { useEffect, useState } from "preact/hooks";
import { post, type List } from "../../api";
import { Button } from "../../parts/button";
import { curl } from "../../parts/curl";
import { Choice, SelectField, TextField } from "../../parts/field";
import { useAction } from "../../parts/loading";
import { Empty, Failure } from "../../parts/notice";
import { comparable, LETTERS } from "../../parts/spelling";
import { quoted, Terminal } from "../../parts/terminal";
import { changeQuery, query } from "../../router";
import { fill, number, words } from "../../words/words";
import { pathOf, type Document, type Hit } from "./collection";

const MODES = ["hybrid", "vectors", "words"] as const;
type Mode = (typeof MODES)[number];
const COUNT = 8;

interface Found {
  question: string;
  mode: Mode;
  hits: Hit[];
}

export function Search({ collection, documents }: { collection: string; documents: Document[] }) {
  const w = words.value.documents;
  const [question, setQuestion] = useState(query.peek().get("question") ?? "");
  const [mode, setMode] = useState<Mode>(() => MODES.find((one) => one === query.peek().get("mode")) ?? "hybrid");
  const [chosen, setDocument] = useState(query.peek().get("document") ?? "");
  const document = documents.some(({ id }) => id === chosen) ? chosen : ""; // it may have been deleted
  const [found, setFound] = useState<Found | null>(null);
  const { busy, failure, run } = useAction();
  const body = { query: question.trim(), mode, count: COUNT, ...(document && { document }) };
  const search = () => question.trim() && run(async (signal) => {
    if (query.peek().get("question") !== question.trim()) changeQuery({ question: null }); // it has another, and takes none
    const { data } = await post<List<Hit>>(`${pathOf(collection)}/search`, body, signal);
    if (signal.aborted) return;
    setFound({ question: question.trim(), mode, hits: data });
  });
  useEffect(() => {
    changeQuery({ mode: mode === "hybrid" ? null : mode, document: document || null });
    search();
  }, [mode, document]);
  const best = Math.max(...(found?.hits.map((hit) => hit.score) ?? []), 1e-9);
  const asked = quoted(question.trim() || w.exampleQuestion);
  return (
    <section class="sheet stack">
      <h2>{w.search}</h2>
      <form class="stack" noValidate role="search" onSubmit={(event) => {
        event.preventDefault();
        search();
      }}>
        <div class="asking">
          <TextField label={w.question} type="search" value={question} onValue={setQuestion} placeholder={w.exampleQuestion} maxLength={10_000} />
          <Button kind="primary" icon="search" type="submit" busy={busy}>{w.find}</Button>
        </div>
        <div class="pair">
          <Choice label={w.mode} value={mode} onValue={setMode} options={MODES.map((value) => ({ value, text: w.modes[value] }))} />
          <SelectField label={w.inDocument} value={document} onValue={setDocument}
            options={[{ value: "", text: w.inAll }, ...documents.map(({ id }) => ({ value: id, text: id }))]} />
        </div>
      </form>
      <Failure error={failure} again={search} />
      {found && !failure && (
        <>
          <p class="hint" role="status">{found.hits.length ? w.why[found.mode] : ""}</p>
          {found.hits.length ? (
            <ol class="hits">
              {found.hits.map((hit) => <HitCard key={`${hit.document}-${hit.page}-${hit.start}`} hit={hit} found={found} best={best} />)}
            </ol>
          ) : <Empty icon="search" title={w.nothing} hint={w.nothingHint} />}
        </>
      )}
      <Terminal commands={[
        { id: "halka", text: `halka docs search ${quoted(collection)} ${asked} --mode ${mode} --count ${COUNT}${document ? ` --under ${quoted(document)}` : ""} --collections collections` },
        { id: "curl", text: curl(`${pathOf(collection)}/search`, { json: { ...body, query: question.trim() || w.exampleQuestion } }) },
      ]} />
    </section>
  );
}

function HitCard({ hit, found, best }: { hit: Hit; found: Found; best: number }) {
  const w = words.value.documents;
  const fromVectors = found.mode === "words" ? 0 : Math.max(0, hit.cosine ?? 0);
  const fromWords = found.mode === "words" ? hit.score : found.mode === "hybrid" ? Math.max(0, hit.score - (hit.cosine ?? 0)) : 0;
  const place = fill(w.place, { start: hit.start, end: hit.end });
  return (
    <li>
      <p>
        <strong dir="auto">{hit.document}</strong>{" "}
        <span class="hint">{hit.page === null ? place : `${fill(w.page, { n: hit.page })}, ${place}`}{hit.heading && ` · ${hit.heading}`}</span>
      </p>
      <p class="plain-text" dir="auto"><Marked text={hit.text} question={found.question} /></p>
      <div class="why">
        <svg viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
          <rect class="rest" width="100" height="6" />
          <rect class="vectors" width={(100 * fromVectors) / best} height="6" />
          <rect class="words" x={(100 * fromVectors) / best} width={(100 * fromWords) / best} height="6" />
        </svg>
        <p class="hint figure">
          <strong>{figure(hit.score)}</strong>
          {hit.cosine !== null && found.mode !== "words" && <> <span class="key vectors">{fill(w.byVectors, { n: figure(hit.cosine) })}</span></>}
          {hit.bm25 !== null && found.mode !== "vectors" && <> <span class="key words">{fill(w.byWords, { n: figure(fromWords), bm25: figure(hit.bm25) })}</span></>}
          {hit.bm25 === null && found.mode === "hybrid" && <> <span>{w.noWords}</span></>}
        </p>
      </div>
    </li>
  );
}

const WORD = new RegExp(`(${LETTERS}+)`, "u");
const SHORTEST = 3; // characters of a word that is marked

/** A passage with the question's words marked where it has them. */
function Marked({ text, question }: { text: string; question: string }) {
  const plain = (word: string) => comparable(word).toLowerCase();
  const wanted = new Set(question.split(WORD).filter((piece) => WORD.test(piece)).map(plain).filter((word) => word.length >= SHORTEST));
  return <>{text.split(WORD).map((piece, at) => (wanted.has(plain(piece)) ? <mark key={at}>{piece}</mark> : piece))}</>;
}

const figure = (value: number) => number(value, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
