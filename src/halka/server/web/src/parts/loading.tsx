// What a screen loads and what a button does: it waits, is there, or says why not.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { words } from "../words/words";
import { Failure } from "./notice";
import { Waiting } from "./progress";

export interface Loading<T> {
  value: T | null;
  failure: unknown;
  /** Ask again; what is there is shown meanwhile. */
  again: () => void;
}

/** What `load` resolves to, loaded anew whenever one of `inputs` changes. */
export function useLoading<T>(load: () => Promise<T>, inputs: unknown[]): Loading<T> {
  const [state, setState] = useState<{ value: T | null; failure: unknown }>({ value: null, failure: null });
  const newest = useRef(0);
  const ask = (value: T | null) => {
    const mine = ++newest.current;
    const settle = (to: { value: T | null; failure: unknown }) => mine === newest.current && setState(to);
    setState({ value, failure: null });
    load().then((loaded) => settle({ value: loaded, failure: null }), (failure: unknown) => settle({ value: null, failure }));
  };
  useEffect(() => {
    ask(null);
    return () => void ++newest.current;
  }, inputs);
  return { ...state, again: () => ask(state.value) };
}

export function Loaded<T>({ of: { value, failure, again }, children }: { of: Loading<T>; children: (value: T) => ComponentChildren }) {
  if (failure) return <Failure error={failure} again={again} />;
  return value === null ? <Waiting label={words.value.shell.loading} /> : <>{children(value)}</>;
}

/** Something that a button does: whether it runs, and why it failed the last time. */
export function useAction() {
  const [busy, setBusy] = useState(false);
  const [failure, setFailure] = useState<unknown>(null);
  const run = (action: () => Promise<unknown>) => {
    setBusy(true);
    setFailure(null);
    action().catch(setFailure).finally(() => setBusy(false));
  };
  return { busy, failure, run };
}
