// Form fields: each with its label, a hint, and what is wrong with it, tied together for screen readers.
import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";

interface Frame {
  label: string;
  hint?: ComponentChildren;
  error?: ComponentChildren;
}

interface Control extends Frame {
  value: string;
  onValue: (value: string) => void;
}

interface Written extends Control {
  type?: "password" | "search";
  placeholder?: string;
  autocomplete?: string;
  spellcheck?: boolean;
  inputMode?: "text" | "numeric" | "decimal";
  rows?: number;
  maxLength?: number;
}

function Framed({ label, hint, error, children }: Frame & { children: (ids: Ids) => ComponentChildren }) {
  const id = useId();
  const described = [hint ? `${id}-hint` : "", error ? `${id}-error` : ""].filter(Boolean).join(" ");
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {children({ id, "aria-describedby": described || undefined, "aria-invalid": error ? true : undefined })}
      {hint && <p class="hint" id={`${id}-hint`}>{hint}</p>}
      {error && <p class="wrong" id={`${id}-error`}>{error}</p>}
    </div>
  );
}

interface Ids {
  id: string;
  "aria-describedby": string | undefined;
  "aria-invalid": true | undefined;
}

export function TextField({ label, hint, error = null, value, onValue, ...rest }: Written) {
  return (
    <Framed label={label} hint={hint} error={error}>
      {(ids) => <input type="text" {...(rest as object)} {...ids} value={value} onInput={(event) => onValue(event.currentTarget.value)} />}
    </Framed>
  );
}

export function TextArea({ label, hint, error = null, value, onValue, ...rest }: Written) {
  return (
    <Framed label={label} hint={hint} error={error}>
      {(ids) => <textarea {...rest} {...ids} value={value} onInput={(event) => onValue(event.currentTarget.value)} />}
    </Framed>
  );
}

export interface Option {
  value: string;
  text: string;
}

export function SelectField({ label, hint, error = null, value, onValue, options }: Control & { options: Option[] }) {
  return (
    <Framed label={label} hint={hint} error={error}>
      {(ids) => (
        <select {...ids} value={value} onChange={(event) => onValue(event.currentTarget.value)}>
          {options.map((option) => (
            <option key={option.value} value={option.value}>{option.text}</option>
          ))}
        </select>
      )}
    </Framed>
  );
}

export function Checkbox({ label, checked, onValue }: { label: string; checked: boolean; onValue: (on: boolean) => void }) {
  return (
    <label class="checkbox">
      <input type="checkbox" checked={checked} onChange={(event) => onValue(event.currentTarget.checked)} />
      <span>{label}</span>
    </label>
  );
}

/** A few choices of which one holds, as joined buttons. */
export function Choice<Value extends string>({ label, value, onValue, options }: {
  label: string;
  value: Value;
  onValue: (value: Value) => void;
  options: { value: Value; text: ComponentChildren; lang?: string; title?: string }[];
}) {
  const name = useId();
  return (
    <fieldset class="choice">
      <legend>{label}</legend>
      {options.map((option) => (
        <label key={option.value} title={option.title}>
          <input type="radio" name={name} value={option.value} checked={option.value === value}
            aria-label={option.title} onChange={() => onValue(option.value)} />
          <span lang={option.lang}>{option.text}</span>
        </label>
      ))}
    </fieldset>
  );
}

/** Give the first field of a form with a wrong value the focus, and open what it is folded in. */
export function showWrong(form: EventTarget | null): void {
  const field = form instanceof HTMLElement ? form.querySelector<HTMLElement>("[aria-invalid]") : null;
  for (let folded = field?.closest("details"); folded; folded = folded.parentElement?.closest("details")) folded.open = true;
  field?.focus();
}
