// One answer: its text as it comes, the passages that it was answered from, and how fast by whom.
import type { Signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { Button } from "../../parts/button";
import { Copy } from "../../parts/copy";
import { Failure } from "../../parts/notice";
import { Prose, Written, type Marks } from "../../parts/prose";
import { count, duration, fill, number, words } from "../../words/words";
import { askWithoutFirst, isRefusal, isTooLong, readBefore, stop, type Answer, type Source, type Turn } from "./conversation";
import { Passage } from "./passage";

export function AnswerCard({ turn, answer, again, asWritten }: {
  turn: Turn;
  answer: Signal<Answer>;
  /** What asks once more, where that is possible. */
  again: (() => void) | null;
  asWritten: boolean;
}) {
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
        {one.text && <Copy text={one.text} label={fill(w.copyOne, { model: one.column.model })} />}
        {runs && <Button kind="quiet" icon="stop" label={fill(w.stopOne, { model: one.column.model })} onClick={() => stop(answer)} />}
        {!runs && again && <Button kind="quiet" icon="again" label={fill(w.askAgain, { model: one.column.model })} onClick={again} />}
      </header>
      {one.state === "waiting" && <p class="waiting">{w.waiting}</p>}
      {one.others.length > 0 && <p class="hint">{fill(w.others, { models: one.others.join(", ") })}</p>}
      {one.text.trim() && <Text answer={one} asWritten={asWritten} open={(wanted) => open(byNumber(wanted))} />}
      {one.state === "done" && !one.text.trim() && <p class="hint">{w.wordless}</p>}
      {one.state === "failed" && <Failure error={one.failure} {...(again && !isRefusal(one.failure) ? { again } : {})} />}
      {again && isTooLong(one.failure) && readBefore(turn).length > 0 && (
        <Button onClick={() => askWithoutFirst(turn)}>{w.withoutFirst}</Button>
      )}
      <Sources answer={one} open={open} />
      <Facts answer={one} />
      <p class="unseen" role="status">{one.state === "done" ? fill(w.finished, { model: one.column.model }) : ""}</p>
      {opened && <Passage collection={one.column.collection} source={opened} onClose={() => open(null)} />}
    </article>
  );
}

/** The text, with its citations as buttons, and what a model thought before it answered folded. */
function Text({ answer, asWritten, open }: { answer: Answer; asWritten: boolean; open: (source: number) => void }) {
  const w = words.value.playground;
  const marks = marksOf(answer, open);
  if (asWritten) return <Written text={answer.text} marks={marks} />;
  const { thought, rest, thinks } = divided(answer.text);
  return (
    <>
      {thought && (
        <details class="thought">
          <summary>{thinks && answer.state === "writing" ? w.thinking : w.thought}</summary>
          <Written text={thought} marks={marks} />
        </details>
      )}
      {rest && <Prose text={rest} marks={marks} />}
    </>
  );
}

/** The buttons in the place of citations, each by what is written there: `[1]`, `[1, 2]`. */
function marksOf(answer: Answer, open: (source: number) => void): Marks {
  const w = words.value.playground;
  const letters = answer.citations.length ? [...answer.text] : [];
  const sources = new Map<string, Set<number>>();
  for (const { start_index, end_index, source } of answer.citations) {
    const written = letters.slice(start_index, end_index).join("");
    sources.set(written, (sources.get(written) ?? new Set()).add(source));
  }
  const button = (source: number) => (
    <button key={source} type="button" class="cite" aria-label={fill(w.openPassage, { n: source })} onClick={() => open(source)}>
      {number(source)}
    </button>
  );
  return new Map([...sources].map(([written, all]) => [written, () => [...all].map(button)]));
}

/** What stands between `<think>` and `</think>`, of which the first may be part of the prompt; and the answer after it. */
function divided(text: string): { thought: string; rest: string; thinks: boolean } {
  const begun = /^\s*<think>/.exec(text)?.[0] ?? "";
  const end = /^<\/think>\s*/m.exec(text);
  if (!begun && !end) return { thought: "", rest: text, thinks: false };
  const thought = text.slice(begun.length, end?.index).trim();
  return { thought, rest: end ? text.slice(end.index + end[0].length) : "", thinks: !end };
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
  const seconds = first === null || last === null ? 0 : (last - first) / 1000;
  if (first === null && answer.state !== "done") return answer.state === "stopped" ? <p class="hint">{w.stopped}</p> : null;
  return (
    <dl class="facts">
      <Fact name={w.tokensName} value={count(w.tokens, tokens)} />
      {tokens > 1 && seconds > 0 && <Fact name={w.rateName} value={fill(w.rate, { n: number((tokens - 1) / seconds, { maximumFractionDigits: 1 }) })} />}
      {first !== null && <Fact name={w.firstName} value={fill(w.first, { time: duration((first - asked) / 1000) })} />}
      {answer.state === "stopped" && <Fact name={w.endName} value={w.stopped} />}
      {answer.finish === "stop" && !answer.text.trim() && <Fact name={w.endName} value={w.byItself} />}
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
