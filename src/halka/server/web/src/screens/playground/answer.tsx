// One answer: its text as it comes, the passages that it was answered from, and how fast by whom.
import type { Signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { Button } from "../../parts/button";
import { Failure } from "../../parts/notice";
import { count, duration, fill, number, words } from "../../words/words";
import { stop, type Answer, type Source } from "./conversation";
import { Passage } from "./passage";

export function AnswerCard({ answer, again }: { answer: Signal<Answer>; again: (() => void) | null }) {
  const w = words.value.playground;
  const one = answer.value;
  const [opened, open] = useState<Source | null>(null);
  const runs = one.state === "waiting" || one.state === "writing";
  const byNumber = (wanted: number) => one.sources.find((source) => source.number === wanted) ?? null;
  return (
    <article class={`answer sheet ${one.state}`} aria-label={fill(w.answerOf, { model: one.column.model })}>
      <header>
        <h3>{one.column.model}</h3>
        {one.column.collection && <span class="badge">{one.column.collection}</span>}
        {runs && <Button kind="quiet" icon="stop" label={fill(w.stopOne, { model: one.column.model })} onClick={() => stop(answer)} />}
        {!runs && again && <Button kind="quiet" icon="again" label={fill(w.askAgain, { model: one.column.model })} onClick={again} />}
      </header>
      {one.state === "waiting" && <p class="waiting">{w.waiting}</p>}
      {one.text && (
        <p class="plain-text" dir="auto">
          <Cited answer={one} open={(wanted) => open(byNumber(wanted))} />
          {one.state === "writing" && <span class="caret" aria-hidden="true" />}
        </p>
      )}
      {one.state === "failed" && <Failure error={one.failure} {...(again ? { again } : {})} />}
      <Sources answer={one} open={open} />
      <Facts answer={one} />
      <p class="unseen" role="status">{one.state === "done" ? fill(w.finished, { model: one.column.model }) : ""}</p>
      {opened && <Passage collection={one.column.collection} source={opened} onClose={() => open(null)} />}
    </article>
  );
}

/** The text, with its citations as buttons. */
function Cited({ answer, open }: { answer: Answer; open: (source: number) => void }) {
  const w = words.value.playground;
  const letters = answer.citations.length ? [...answer.text] : [];
  if (!letters.length) return <>{answer.text}</>;
  const pieces: ComponentChildren[] = [];
  let at = 0;
  for (const citation of answer.citations) {
    pieces.push(letters.slice(at, citation.start_index).join(""));
    pieces.push(
      <button type="button" class="cite" aria-label={fill(w.openPassage, { n: citation.source })} onClick={() => open(citation.source)}>
        {number(citation.source)}
      </button>,
    );
    at = citation.end_index;
  }
  return <>{pieces}{letters.slice(at).join("")}</>;
}

function Sources({ answer, open }: { answer: Answer; open: (source: Source) => void }) {
  const w = words.value.playground;
  if (!answer.sources.length) return null;
  return (
    <details class="sources" open={answer.sources.some((source) => source.cited)}>
      <summary>{count(w.passages, answer.sources.length)}</summary>
      <ol>
        {answer.sources.map((source) => (
          <li key={source.number}>
            <button type="button" onClick={() => open(source)}>
              <span class="figure">{number(source.number)}</span>
              <span>
                <strong>{source.document}</strong> {source.cited && <span class="badge gold">{w.cited}</span>}
                <span class="hint excerpt" dir="auto">{source.text}</span>
              </span>
            </button>
          </li>
        ))}
      </ol>
    </details>
  );
}

function Facts({ answer }: { answer: Answer }) {
  const w = words.value.playground;
  const { first, last, asked, tokens } = answer;
  if (first === null || last === null) return answer.state === "stopped" ? <p class="hint">{w.stopped}</p> : null;
  const seconds = (last - first) / 1000;
  return (
    <dl class="facts">
      <Fact name={w.tokensName} value={count(w.tokens, tokens)} />
      {tokens > 1 && seconds > 0 && <Fact name={w.rateName} value={fill(w.rate, { n: number((tokens - 1) / seconds, { maximumFractionDigits: 1 }) })} />}
      <Fact name={w.firstName} value={fill(w.first, { time: duration((first - asked) / 1000) })} />
      {answer.state === "stopped" && <Fact name={w.endName} value={w.stopped} />}
      {answer.finish === "length" && <Fact name={w.endName} value={w.cutOff} />}
      {answer.state === "done" && !answer.abstained && (
        <Fact name={w.contentName} value={answer.content ? <code title={answer.content}>{answer.content.slice(0, 12)}</code> : w.byBase} />
      )}
    </dl>
  );
}

function Fact({ name, value }: { name: string; value: ComponentChildren }) {
  return <div><dt class="unseen">{name}</dt><dd title={name}>{value}</dd></div>;
}
