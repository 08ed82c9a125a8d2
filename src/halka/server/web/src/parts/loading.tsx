// What a screen loads and what a button does: it waits, is there, or says why not.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { words } from "../words/words";
import { Failure } from "./notice";
import { Waiting } from "./progress";

export interface Loading<T> {
  value: T | null;
  failure: unknown;
  /** Ask again; what is there stays meanwhile, and where that fails. */
  again: () => void;
}

interface State<T> {
  value: T | null;
  failure: unknown;
  inputs: unknown[];
}

const nothing = <T,>(inputs: unknown[]): State<T> => ({ value: null, failure: null, inputs });

const PAUSE = 150; // milliseconds without a further choice: who types a word asks once
const EVERY = 3000; // milliseconds between two looks at what changes by itself

/** What `load` resolves to, loaded anew whenever one of `inputs` changes: what came of earlier ones is never shown with these.
 *
 * Where one of `choices` does, what is there stays until the new is: it is of the same kind, and may have the focus.
 */
export function useLoading<T>(load: () => Promise<T>, inputs: unknown[], choices: unknown[] = []): Loading<T> {
  const [state, setState] = useState<State<T>>(() => nothing(inputs));
  const newestLoad = useRef(load);
  newestLoad.current = load; // an `again` of an earlier screen asks for what is shown now
  const newest = useRef(0);
  const shown = useRef(0); // the newest that came, or what is void with all before it
  const again = () => {
    const mine = ++newest.current;
    const isNew = () => mine > shown.current && (shown.current = mine);
    setState((last) => ({ ...last, failure: null }));
    newestLoad.current().then(
      (value) => isNew() && setState((last) => ({ ...last, value, failure: null })),
      (failure: unknown) => isNew() && setState((last) => ({ ...last, failure })),
    );
  };
  useEffect(() => {
    setState(nothing(inputs));
    again();
    return () => void (shown.current = newest.current);
  }, inputs);
  const isFirst = useRef(true);
  useEffect(() => {
    if (isFirst.current) return void (isFirst.current = false);
    shown.current = newest.current;
    const timer = setTimeout(again, PAUSE);
    return () => clearTimeout(timer);
  }, choices);
  const { value, failure } = inputs.every((input, n) => input === state.inputs[n]) ? state : nothing<T>(inputs);
  return { value, failure, again };
}

/** Ask again and again while `on`, where somebody looks at the page. */
export function useLookingAgain(again: () => void, on = true) {
  const newest = useRef(again);
  newest.current = again;
  useEffect(() => {
    if (!on) return;
    const timer = setInterval(() => document.visibilityState === "visible" && newest.current(), EVERY);
    return () => clearInterval(timer);
  }, [on]);
}

export function Loaded<T>({ of: { value, failure, again }, children }: { of: Loading<T>; children: (value: T) => ComponentChildren }) {
  return (
    <>
      <Failure error={failure} again={again} />
      {value !== null ? children(value) : !failure && <Waiting label={words.value.shell.loading} />}
    </>
  );
}

/** Something that a button does: whether it runs, and why it failed the last time.
 *
 * What is begun anew, or gone from the page, counts no more: its signal is aborted, and what was to come `then` does not.
 */
export function useAction() {
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<unknown>(null);
  const newest = useRef(new AbortController());
  useEffect(() => () => newest.current.abort(), []);
  const run = <T,>(action: (signal: AbortSignal) => Promise<T>, then: (value: T) => void = () => {}) => {
    newest.current.abort();
    const { signal } = (newest.current = new AbortController());
    setBusy(true);
    setFailure(null);
    action(signal)
      .then((value) => signal.aborted || then(value))
      .catch((error: unknown) => signal.aborted || setFailure(error))
      .finally(() => signal.aborted || setBusy(false));
  };
  return { busy, failure, run };
}
