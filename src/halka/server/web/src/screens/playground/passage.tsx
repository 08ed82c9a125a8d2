// A passage that was used, opened at its place among the passages of its document.
import { useEffect, useRef } from "preact/hooks";
import { post, type List } from "../../api";
import { Dialog } from "../../parts/dialog";
import { useLoading } from "../../parts/loading";
import { Failure } from "../../parts/notice";
import { link } from "../../router";
import { fill, words } from "../../words/words";
import type { Source } from "./conversation";

interface Piece {
  page: number | null;
  start: number;
  end: number;
  text: string;
}

const MANY = 100; // passages that a search gives at most

export function Passage({ collection, source, onClose }: { collection: string; source: Source; onClose: () => void }) {
  const w = words.value.playground;
  const here = useRef<HTMLElement>(null);
  const { value, failure, again } = useLoading(async () => {
    const query = { query: [...source.text].slice(0, 1000).join(""), document: source.document, count: MANY };
    const { data } = await post<List<Piece>>(`/v1${link("collections", collection, "search")}`, query);
    const others = data.filter((piece) => !same(piece, source));
    return [...others, source].sort((a, b) => (a.page ?? 0) - (b.page ?? 0) || a.start - b.start);
  }, [collection, source]);
  const pieces: Piece[] = value ?? [source];
  useEffect(() => here.current?.scrollIntoView({ block: "center" }), [value]);
  const place = fill(w.place, { start: source.start, end: source.end });
  return (
    <Dialog wide title={source.document} onClose={onClose}>
      <p class="hint">
        {source.page === null ? place : `${fill(w.page, { n: source.page })}, ${place}`}
        {" · "}
        <a href={`${link("documents", collection)}?document=${encodeURIComponent(source.document)}`}>{w.toDocuments}</a>
      </p>
      <Failure error={failure} again={again} />
      <div class="document" tabIndex={0} role="region" aria-label={source.document}>
        {pieces.map((piece) => same(piece, source)
          ? <mark key={piece.start} ref={here} class="plain-text" dir="auto">{piece.text}</mark>
          : <p key={`${piece.page}-${piece.start}`} class="plain-text" dir="auto">{piece.text}</p>)}
      </div>
    </Dialog>
  );
}

const same = (one: Piece, other: Piece) => one.page === other.page && one.start === other.start;
