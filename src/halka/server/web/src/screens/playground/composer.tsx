// Where a message is written and asked, with the settings of how answers are sampled.
import { useRef } from "preact/hooks";
import { Button } from "../../parts/button";
import { TextField } from "../../parts/field";
import { Icon } from "../../parts/icons";
import { fill, typed, words } from "../../words/words";
import { busy, sampling, stop, type Sampling } from "./conversation";

const RANGES: Record<keyof Sampling, { min: number; max: number; step: number | "any" }> = {
  temperature: { min: 0, max: 2, step: "any" },
  top_p: { min: 0, max: 1, step: "any" },
  max_tokens: { min: 1, max: 2 ** 31 - 1, step: 1 },
  seed: { min: -(2 ** 31), max: 2 ** 31 - 1, step: 1 },
};

export function Composer({ draft, setDraft, onAsk }: { draft: string; setDraft: (text: string) => void; onAsk: () => void }) {
  const w = words.value.playground;
  const text = useRef<HTMLTextAreaElement>(null);
  const ask = (event: Event) => {
    event.preventDefault();
    if (draft.trim() && !busy() && !Object.keys(RANGES).some((name) => wrong(name as keyof Sampling))) onAsk();
    text.current?.focus();
  };
  return (
    <form class="composer sheet" onSubmit={ask} noValidate>
      <label class="unseen" for="prompt">{w.prompt}</label>
      <textarea id="prompt" ref={text} rows={2} value={draft} placeholder={w.placeholder} dir="auto"
        onInput={(event) => setDraft(event.currentTarget.value)}
        onKeyDown={(event) => event.key === "Enter" && !event.shiftKey && !event.isComposing && ask(event)} />
      <div class="row">
        <details class="sampling">
          <summary><Icon name="settings" />{w.sampling}</summary>
          <div class="fields">{(Object.keys(RANGES) as (keyof Sampling)[]).map((name) => <Setting key={name} name={name} />)}</div>
        </details>
        {busy()
          ? <Button kind="danger" icon="stop" onClick={() => stop()}>{w.stop}</Button>
          : <Button kind="primary" icon="send" type="submit">{w.ask}</Button>}
      </div>
    </form>
  );
}

function Setting({ name }: { name: keyof Sampling }) {
  const w = words.value.playground;
  return (
    <TextField label={w[name]} inputMode="decimal" placeholder={w.byServer} value={sampling.value[name]} autocomplete="off"
      error={wrong(name) ? fill(w.outOfRange, { min: RANGES[name].min, max: RANGES[name].max }) : null}
      onValue={(value) => { sampling.value = { ...sampling.value, [name]: value }; }} />
  );
}

function wrong(name: keyof Sampling): boolean {
  const text = sampling.value[name];
  const { min, max, step } = RANGES[name];
  const value = typed(text);
  return text.trim() !== "" && !(value >= min && value <= max && (step === "any" || Number.isInteger(value)));
}
