import { useState } from "preact/hooks";
import { words } from "../words/words";
import { Button } from "./button";

/** A button that copies a text, and says so; `label`: what it copies, where the button is but an icon. */
export function Copy({ text, label }: { text: string; label?: string }) {
  const { parts } = words.value;
  const [tried, setTried] = useState({ text: "", copied: false });
  const state = tried.text !== text ? "" : tried.copied ? "copied" : "copyFailed";
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text); // which is there on https and on this machine alone
      setTried({ text, copied: true });
    } catch {
      setTried({ text, copied: false });
    }
  };
  return (
    <>
      <Button kind="quiet" icon={state === "copied" ? "check" : "copy"} {...(label ? { label } : {})} onClick={copy}>{label ? null : parts.copy}</Button>
      <p role="status" class={label && state === "copied" ? "unseen" : "hint"}>{state && parts[state]}</p>
    </>
  );
}
