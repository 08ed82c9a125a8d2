// What is advised, how sure that is, why, and what would change it; its command, and a way to train it at once.
import type { Job, Score } from "../../jobs/jobs";
import { Button } from "../../parts/button";
import { Intervals } from "../../parts/intervals";
import { Code } from "../../parts/terminal";
import { go } from "../../router";
import { fill, percent, words } from "../../words/words";
import { chooseFile } from "../train/draft";
import { fileOf } from "./question";

/** A rule, or what was measured or is open, and what the advisor says of it. */
interface Reason {
  rule: string;
  text: string;
}

export interface Advised {
  advice: {
    choice: string;
    title: string;
    confidence: number;
    prospects: { choice: string; score: Score; how: string }[];
    reasons: Reason[];
    change: Reason[];
    missing: Reason[];
    commands: string[];
    settings: Record<string, unknown>;
  };
  evidence: { subject: { metric: string; held_out: number; train: number } };
}

export function Verdict({ job }: { job: Job<Advised> }) {
  const w = words.value.advise;
  if (!job.result) return null;
  const { advice, evidence: { subject } } = job.result;
  const sure = advice.confidence >= 0.85 ? w.high : advice.confidence >= 0.65 ? w.medium : w.low;
  return (
    <>
      <section class="sheet stack verdict">
        <p class="hint">{w.verdict}</p>
        <h2>{choiceOf(advice.choice)}</h2>
        <p>{fill(w.confidence, { sure, share: percent(advice.confidence) })}</p>
        {Object.keys(advice.settings).length > 0 && (
          <div class="row"><Button kind="primary" icon="train" onClick={() => trainThis(job.id, advice.settings)}>{w.train}</Button></div>
        )}
        {advice.choice === "peft+rag" && <p class="hint">{w.withPassages}</p>}
      </section>
      {advice.prospects.length > 0 && (
        <section class="sheet stack">
          <Intervals caption={fill(w.expected, { metric: subject.metric.replaceAll("_", " "), held_out: subject.held_out })}
            rows={advice.prospects.map(({ choice, score, how }) => ({ name: choiceOf(choice, "row"), note: named(how, keyOf("how", how)), chosen: choice === advice.choice, ...score }))} />
        </section>
      )}
      <section class="sheet stack">
        <h2>{w.why}</h2>
        <Reasons of={advice.reasons} as="why" />
        {advice.change.length > 0 && <><h3>{w.change}</h3><Reasons of={advice.change} as="change" /></>}
        {advice.missing.length > 0 && <><h3>{w.missing}</h3><Reasons of={advice.missing} as="missing" /></>}
      </section>
      {advice.commands.length > 0 && (
        <section class="sheet stack">
          <h2>{w.next}</h2>
          <Code text={advice.commands.join("\n")} />
        </section>
      )}
    </>
  );
}

/** What each is about, in the reader's words, with the advisor's own, which are English. */
function Reasons({ of, as }: { of: Reason[]; as: "why" | "change" | "missing" }) {
  return (
    <dl class="reasons">
      {of.map(({ rule, text }) => <div key={rule}><dt>{named(rule, keyOf(as, rule), keyOf("probe", rule))}</dt><dd lang="en">{text}</dd></div>)}
    </dl>
  );
}

const keyOf = (as: string, name: string) => `${as}_${name.replace(/\W+/g, "_")}`;
const choiceOf = (choice: string, as: "choice" | "row" = "choice") => named(choice, keyOf(as, choice));

/** What something of the advisor's is called on the page, by the first of these words that is there; else by its own name. */
function named(name: string, ...keys: string[]): string {
  const w = words.value.advise as Record<string, unknown>;
  return String(keys.map((key) => w[key]).find((text) => typeof text === "string") ?? name);
}

function trainThis(id: string, settings: Record<string, unknown>): void {
  const file = fileOf(id);
  if (file) chooseFile(file);
  go(`/train?settings=${encodeURIComponent(JSON.stringify(settings))}`);
}
