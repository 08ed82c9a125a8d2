// What is advised, how sure that is, why, and what would change it; its command, and a way to train it at once.
import type { Job, Score } from "../../jobs/jobs";
import { Button } from "../../parts/button";
import { Intervals } from "../../parts/intervals";
import { Code } from "../../parts/terminal";
import { go } from "../../router";
import { fill, percent, words } from "../../words/words";
import { chooseFile } from "../train/draft";
import { question } from "./question";

export interface Advised {
  advice: {
    choice: string;
    title: string;
    confidence: number;
    prospects: { choice: string; score: Score; how: string }[];
    reasons: { rule: string; text: string }[];
    change: string[];
    missing: string[];
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
          <div class="row"><Button kind="primary" icon="train" onClick={() => trainThis(advice.settings)}>{w.train}</Button></div>
        )}
        {advice.choice === "peft+rag" && <p class="hint">{w.withPassages}</p>}
      </section>
      {advice.prospects.length > 0 && (
        <section class="sheet stack">
          <Intervals caption={fill(w.expected, { metric: subject.metric.replaceAll("_", " "), held_out: subject.held_out })}
            rows={advice.prospects.map(({ choice, score, how }) => ({ name: choiceOf(choice, "row"), note: how, chosen: choice === advice.choice, ...score }))} />
        </section>
      )}
      <section class="sheet stack">
        <h2>{w.why}</h2>
        <Lines lines={advice.reasons.map(({ text }) => text)} />
        {advice.change.length > 0 && <><h3>{w.change}</h3><Lines lines={advice.change} /></>}
        {advice.missing.length > 0 && <><h3>{w.missing}</h3><Lines lines={advice.missing} /></>}
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

/** Sentences of the server, which speaks English. */
const Lines = ({ lines }: { lines: string[] }) => <ul class="lines" lang="en">{lines.map((line) => <li key={line}>{line}</li>)}</ul>;

function choiceOf(choice: string, as: "choice" | "row" = "choice"): string {
  const w = words.value.advise as Record<string, unknown>;
  const title = w[`${as}_${choice.replace("+", "_")}`];
  return typeof title === "string" ? title : choice;
}

function trainThis(settings: Record<string, unknown>): void {
  const { file } = question.peek();
  if (file) chooseFile(file);
  go(`/train?settings=${encodeURIComponent(JSON.stringify(settings))}`);
}
