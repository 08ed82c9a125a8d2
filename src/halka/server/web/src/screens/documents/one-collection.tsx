// One collection: asked a question, and its documents with who may read them and since when they are there.
import { useState } from "preact/hooks";
import { baseName, isMissing } from "../../api";
import { Button } from "../../parts/button";
import { Confirm } from "../../parts/confirm";
import { curl } from "../../parts/curl";
import { Loaded, useLoading } from "../../parts/loading";
import { Empty } from "../../parts/notice";
import { Table } from "../../parts/table";
import { quoted, Terminal } from "../../parts/terminal";
import { go, link } from "../../router";
import { may } from "../../session";
import { ago, count, fill, moment, number, words } from "../../words/words";
import { Heading } from "../shown";
import { documentsIn, EVERYONE, pathOf, removeCollection, removeDocument, type Document } from "./collection";
import { Search } from "./search";
import { Upload } from "./upload";
import { forget } from "./uploads";

export function OneCollection({ name }: { name: string }) {
  const w = words.value.documents;
  const documents = useLoading(() => documentsIn(name), [name]);
  const base = useLoading(baseName, []).value;
  const [removing, setRemoving] = useState(false);
  return (
    <div class="stack">
      <p><a href={link("documents")}>{w.all}</a></p>
      <Heading title={name} lead={documents.value ? summaryOf(documents.value) : w.lead}>
        {!isMissing(documents.failure) && (
          <div class="row">
            {base && <a class="button" href={`/playground?${new URLSearchParams({ model: `${base}:${name}` })}`}>{w.ask}</a>}
            {may("manager") && <Button kind="danger" icon="trash" onClick={() => setRemoving(true)}>{w.remove}</Button>}
          </div>
        )}
      </Heading>
      <Loaded of={documents}>
        {(all) => (
          <>
            {all.length > 0 && <Search collection={name} documents={all} />}
            {may("manager") && <Upload collection={name} open={!all.length} onDone={documents.again} />}
            {all.length ? <Documents collection={name} all={all} again={documents.again} />
              : <Empty icon="documents" title={w.none} hint={may("manager") ? w.noneHint : w.noneForUsers} />}
          </>
        )}
      </Loaded>
      <Terminal commands={[
        { id: "halka", text: [
          `halka docs add ${quoted(name)} ./documents --collections collections`,
          `halka docs list ${quoted(name)} --collections collections`,
          `halka docs remove ${quoted(name)} parcels.md --collections collections`,
          `halka docs remove ${quoted(name)} --collections collections`,
        ].join("\n") },
        { id: "curl", text: [
          curl(`${pathOf(name)}/documents`, { form: [["files", "@parcels.md"], ["readers", "admin"]] }),
          curl(`${pathOf(name)}/documents`),
          curl(`${pathOf(name)}/documents/parcels.md`, { method: "DELETE" }),
          curl(pathOf(name), { method: "DELETE" }),
        ].join("\n") },
      ]} />
      {removing && <Confirm title={fill(w.removeTitle, { name })} hint={w.removeHint} yes={fill(w.removeYes, { name })}
        onYes={() => removeCollection(name).then(() => forget(name))} onDone={() => go(link("documents"))} onClose={() => setRemoving(false)} />}
    </div>
  );
}

/** How many documents and passages, and how fresh they are. */
function summaryOf(all: Document[]): string {
  const w = words.value.documents;
  const passages = all.reduce((sum, document) => sum + document.passages, 0);
  const newest = all.map((document) => document.added).sort().at(-1);
  return [count(w.documents, all.length), count(w.passages, passages), ...(newest ? [fill(w.freshest, { when: ago(newest) })] : [])].join(" · ");
}

function Documents({ collection, all, again }: { collection: string; all: Document[]; again: () => void }) {
  const w = words.value.documents;
  const [removing, setRemoving] = useState<string | null>(null);
  return (
    <section class="stack">
      <h2>{w.title}</h2>
      <Table caption={w.title} rows={all} keyOf={(document) => document.id} columns={[
        { title: w.document, cell: (document) => <span class="named" dir="auto">{document.id}</span> },
        { title: w.passagesTitle, numeric: true, cell: (document) => number(document.passages) },
        { title: w.readers, cell: (document) => <Readers document={document} /> },
        { title: w.tags, cell: (document) => document.tags.map((tag) => <span key={tag} class="badge">#{tag}</span>) },
        { title: w.added, cell: (document) => document.added && <time dateTime={document.added} title={moment(document.added)}>{ago(document.added)}</time> },
        ...(may("manager") ? [{ title: w.actions, cell: (document: Document) => (
          <Button kind="quiet" icon="trash" label={fill(w.removeYes, { name: document.id })} onClick={() => setRemoving(document.id)} />
        ) }] : []),
      ]} />
      {removing !== null && <Confirm title={fill(w.removeTitle, { name: removing })} hint={w.removeDocumentHint} yes={fill(w.removeYes, { name: removing })}
        onClose={() => setRemoving(null)} onYes={() => removeDocument(collection, removing).then(() => {
          setRemoving(null);
          again();
        })} />}
    </section>
  );
}

function Readers({ document }: { document: Document }) {
  const { documents: w, shell } = words.value;
  if (document.readers.includes(EVERYONE)) return <>{w.everyone}</>;
  const named = (reader: string) => (Object.hasOwn(shell.role, reader) ? shell.role[reader as keyof typeof shell.role] : reader);
  return <>{document.readers.map((reader) => <span key={reader} class="badge gold">{named(reader)}</span>)}</>;
}
