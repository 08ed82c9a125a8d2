// Where a message is written and asked, with how models are to answer: the system message, and how words are sampled.
import type { ComponentChildren } from "preact";
import { useRef } from "preact/hooks";
import { Button } from "../../parts/button";
import { showWrong, TextArea, TextField } from "../../parts/field";
import { Icon } from "../../parts/icons";
import { fill, words } from "../../words/words";
import { busy, stop } from "./conversation";
import { draft, isSet, isWrong, NAMES, RANGES, sampling, system, type Sampling } from "./settings";

const touched = matchMedia("(pointer: coarse)");

export function Composer({ onAsk, children }: { onAsk: () => void; children: ComponentChildren }) {
  const w = words.value.playground;
  const text = useRef<HTMLTextAreaElement>(null);
  const ask = (event: Event) => {
    event.preventDefault();
    if (NAMES.some(isWrong)) return showWrong(text.current?.form ?? null);
    if (draft.value.trim() && !busy()) onAsk();
    text.current?.focus();
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const alone = !event.shiftKey && !touched.matches; // a keyboard on a screen has no Shift for a new line
    if (event.key === "Enter" && !event.isComposing && (alone || event.ctrlKey || event.metaKey)) ask(event);
  };
  return (
    <form class="composer sheet" onSubmit={ask} noValidate>
      <label class="unseen" for="prompt">{w.prompt}</label>
      <textarea id="prompt" ref={text} rows={2} value={draft.value} placeholder={touched.matches ? w.placeholderTouched : w.placeholder} dir="auto"
        onInput={(event) => { draft.value = event.currentTarget.value; }} onKeyDown={onKeyDown} />
      {children}
      <div class="row">
        <details class="settings">
          <summary><span><Icon name="settings" />{w.settings}</span><AllSet /></summary>
          <TextArea label={w.system} hint={w.systemHint} rows={2} value={system.value} onValue={(value) => { system.value = value; }} />
          <div class="fields">{NAMES.map((name) => <Setting key={name} name={name} />)}</div>
        </details>
        {busy()
          ? <Button kind="danger" icon="stop" onClick={() => stop()}>{w.stop}</Button>
          : <Button kind="primary" icon="send" type="submit">{w.ask}</Button>}
      </div>
    </form>
  );
}

/** What is set, seen while it is folded. */
function AllSet() {
  const w = words.value.playground;
  return (
    <>
      {system.value.trim() && <span class="badge">{w.systemSet}</span>}
      {NAMES.filter(isSet).map((name) => (
        <span key={name} class={isWrong(name) ? "badge danger" : "badge"}>{w[name]} {sampling.value[name]}</span>
      ))}
    </>
  );
}

function Setting({ name }: { name: keyof Sampling }) {
  const w = words.value.playground;
  return (
    <TextField label={w[name]} inputMode="decimal" placeholder={w.byServer} value={sampling.value[name]} autocomplete="off"
      error={isWrong(name) ? fill(w.outOfRange, { min: RANGES[name].min, max: RANGES[name].max }) : null}
      onValue={(value) => { sampling.value = { ...sampling.value, [name]: value }; }} />
  );
}
