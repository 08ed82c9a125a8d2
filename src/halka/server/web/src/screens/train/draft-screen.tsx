// From a file to a training: what is in it, how to train, what that takes; and the trainings there were.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, baseName, paramOf } from "../../api";
import { JobList } from "../../jobs/list";
import { NameTaken } from "../../jobs/name-taken";
import { Button } from "../../parts/button";
import { ErrorText } from "../../parts/error-text";
import { SelectField, showWrong, TextField } from "../../parts/field";
import { FileField } from "../../parts/files";
import { Loaded, useAction, useLoading } from "../../parts/loading";
import { wrongName } from "../../parts/names";
import { Failure, Notice } from "../../parts/notice";
import { Waiting } from "../../parts/progress";
import { Code, Terminal } from "../../parts/terminal";
import { go, link, query } from "../../router";
import { fill, number, words } from "../../words/words";
import { Heading } from "../shown";
import { anyWrong, catalogue, type Catalogue } from "./catalogue";
import { change, chooseFile, chooseSettings, draft, KINDS_AND_TEXT, look, start, trainCommands } from "./draft";
import { MethodChoice } from "./method";
import { NeedsOf, type Needs } from "./needs";
import { PreviewOf, type Preview } from "./preview";

export function DraftScreen() {
  const w = words.value.train;
  const all = useLoading(() => Promise.all([catalogue(), baseName()]).then(([methods, base]) => {
    settingsOfAddress(methods);
    return { methods, base };
  }), []);
  return (
    <div class="train">
      <Heading title={w.title} lead={w.lead} />
      <Loaded of={all}>{({ methods, base }) => <Draft all={methods} base={base ?? "BASE"} />}</Loaded>
      <JobList kinds={["train", "evaluate", "merge"]} />
    </div>
  );
}

/** Take over, once, the settings in the address, as an advice, a job or a link gives them: `?settings={"method": …}`. */
function settingsOfAddress(all: Catalogue): void {
  const text = query.peek().get("settings");
  const [held, name] = [query.peek().get("held"), query.peek().get("name")];
  if (!text) return;
  try {
    const settings: unknown = JSON.parse(text);
    const job = held === null || name === null ? {} : { held, name, reused: true };
    if (settings && typeof settings === "object") chooseSettings(all, settings as Record<string, unknown>, job);
  } catch {
    // no settings
  }
  go(link("train"), { replace: true });
}

function Draft({ all, base }: { all: Catalogue; base: string }) {
  const w = words.value.train;
  const one = draft.value;
  const preview = useLook<Preview>("data/preview", all, 300);
  const needs = useLook<Needs>("estimate", all, 900);
  const { busy, failure, run } = useAction();
  const [checked, setChecked] = useState(false);
  const wrong = checked ? wrongName(one.name) : null;
  const validationMissing = one.held === "file" && !one.validation;
  const begin = (event: Event) => {
    event.preventDefault();
    const form = event.currentTarget;
    setChecked(true);
    if (busy || !one.file) return;
    if (wrongName(one.name) || validationMissing || anyWrong(all, one.method || all.default, one.values)) requestAnimationFrame(() => showWrong(form));
    else run(() => start(all, one), (job) => {
      change({ reused: false });
      go(link("train", job.id));
    });
  };
  const ofName = paramOf(failure, "train") === "name" ? <ErrorText of={failure} /> : null;
  return (
    <form class="stack" onSubmit={begin} onKeyDown={keepSettings} noValidate>
      <Part at={1} title={w.data}>
        {one.reused && (!one.file || validationMissing) && (
          <Notice kind="info"><p>{[...(one.file ? [] : [w.fileAgain]), ...(validationMissing ? [w.validationAgain] : [])].join(" ")}</p></Notice>
        )}
        <FileField label={w.drop} hint={w.dropTextHint} accept={KINDS_AND_TEXT} file={one.file} onFile={chooseFile} />
        {!one.file && <details class="more"><summary>{w.forms}</summary><Code text={FORMS} /></details>}
        <Looked looked={preview} label={w.reading}>{(read) => <PreviewOf preview={read} tooLong={one.values[TOO_LONG] ?? ""} />}</Looked>
        {one.file && (
          <div class="grid">
            <SelectField label={w.held} hint={w.heldHint} value={one.held} onValue={(held) => change({ held })}
              options={[...new Set(["0.1", "0.2", one.held, "file", ""])].map((value) => ({ value, text: heldText(value) }))} />
            {one.held === "file" && (
              <FileField label={w.dropValidation} hint={w.dropTextHint} accept={KINDS_AND_TEXT} file={one.validation} onFile={(validation) => change({ validation })}
                error={checked && validationMissing ? w.validationMissing : null} />
            )}
          </div>
        )}
      </Part>
      <Part at={2} title={w.method}>
        <MethodChoice all={all} failure={needs.failure ?? failure} />
      </Part>
      <Part at={3} title={w.begin}>
        <Looked looked={needs} label={w.estimating}>{(taken) => <NeedsOf needs={taken} />}</Looked>
        <div class="begin">
          <TextField label={w.name} hint={w.nameHint} error={wrong ?? ofName} value={one.name}
            autocomplete="off" spellcheck={false} onValue={(name) => change({ name })} />
          <Button kind="primary" icon="train" type="submit" busy={busy || !one.file}>{w.start}</Button>
        </div>
        <NameTaken name={one.name.trim()} />
        {!one.file && <p class="hint">{w.emptyHint}</p>}
        {failure !== null && !ofName && <Failure error={failure} />}
        <Terminal commands={trainCommands(all, one, base)} />
      </Part>
    </form>
  );
}

/** Enter begins at the name alone: in a setting it is a slip. */
function keepSettings(event: KeyboardEvent): void {
  const field = event.target instanceof HTMLInputElement && event.target.type !== "file" && !event.target.closest(".begin");
  if (event.key === "Enter" && field) event.preventDefault();
}

function Part({ at, title, children }: { at: number; title: string; children: ComponentChildren }) {
  return <section class="sheet stack part"><h2><span aria-hidden="true" class="number">{number(at)}</span>{title}</h2>{children}</section>;
}

function heldText(held: string): string {
  const w = words.value.train;
  return held === "file" ? w.heldFile : held === "" ? w.heldNone : fill(w.heldShare, { n: 100 * Number(held) });
}

// ── looks at the draft, as it changes ────────────────────────────────────────────────────────────────────────────────

/** The settings that change what is read. */
const TOO_LONG = "train.too_long";
const OF_READING = ["train.max_length", "train.batch_size", "train.batch_tokens", "train.group_shared", "train.batches", TOO_LONG];
const PAUSE = 1000; // milliseconds until it is asked again, where the server looks at other data

interface LookedAt<T> {
  value: T | null;
  failure: unknown;
  busy: boolean;
  again: () => void;
}

/** What the server says of the draft, asked again some moments after it changed. */
function useLook<T>(what: "data/preview" | "estimate", all: Catalogue, pause: number): LookedAt<T> {
  const { file, held, validation, method, values } = draft.value;
  const [state, setState] = useState<Omit<LookedAt<T>, "again">>({ value: null, failure: null, busy: false });
  const [times, setTimes] = useState(0);
  const before = useRef(file);
  const whole = what === "estimate";
  const changes = JSON.stringify(whole ? [method, values, held] : OF_READING.map((path) => values[path]));
  useEffect(() => {
    if (!file) return setState({ value: null, failure: null, busy: false });
    const controller = new AbortController();
    const same = before.current === file;
    before.current = file;
    setState(({ value, failure }) => ({ value: same ? value : null, failure: same ? failure : null, busy: true }));
    const now = { ...draft.peek(), name: "" };
    const asked = whole ? now : { ...now, method: "", values: Object.fromEntries(OF_READING.map((path) => [path, now.values[path] ?? ""])) };
    let timer = setTimeout(function ask() {
      look<T>(what, all, asked, controller.signal).then(
        (value) => setState({ value, failure: null, busy: false }),
        (failure: unknown) => {
          if (controller.signal.aborted) return;
          if (failure instanceof ApiError && failure.code === "busy") timer = setTimeout(ask, PAUSE);
          else setState({ value: null, failure, busy: false });
        },
      );
    }, pause);
    return () => {
      clearTimeout(timer);
      controller.abort();
    };
  }, [file, held === "file" && validation, changes, times]);
  return { ...state, again: () => setTimes(times + 1) };
}

function Looked<T>({ looked, label, children }: { looked: LookedAt<T>; label: string; children: (value: T) => ComponentChildren }) {
  return (
    <div class={looked.busy ? "looked busy" : "looked"} aria-busy={looked.busy}>
      <Failure error={looked.failure} again={looked.again} />
      {looked.value && children(looked.value)}
      {looked.busy && <Waiting label={label} />}
    </div>
  );
}

const FORMS = `{"prompt": "…", "completion": "…"}
{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}]}

prompt,completion
…,…`;
