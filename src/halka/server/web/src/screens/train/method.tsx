// How to train: a few methods in plain words, and under "more settings" all others with every field.
import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";
import { paramOf } from "../../api";
import { ErrorText } from "../../parts/error-text";
import { SelectField, TextField } from "../../parts/field";
import { number, words } from "../../words/words";
import { fits, NONE, shown, type Catalogue, type Method, type Setting } from "./catalogue";
import { change, chooseMethod, draft } from "./draft";

const FEW = ["lora", "ia3", "bottleneck", "full"];
const FIRST = "train.epochs";

export function MethodChoice({ all, failure }: { all: Catalogue; failure: unknown }) {
  const w = words.value.train;
  const name = useId();
  const chosen = draft.value.method || all.default;
  const few = [all.default, ...FEW.filter((one) => one !== all.default)];
  const listed = all.data.filter((method) => few.includes(method.name) || method.name === chosen)
    .sort((a, b) => (few.indexOf(a.name) + 1 || 99) - (few.indexOf(b.name) + 1 || 99));
  const method = all.data.find((one) => one.name === chosen);
  const wrong = paramOf(failure, "train");
  const field = (setting: Setting) => (
    <SettingField key={setting.path} setting={setting.path === "train.lr" ? { ...setting, default: method?.lr ?? null, optional: false } : setting}
      wrong={wrong === `settings.${setting.path}` ? <ErrorText of={failure} /> : null} />
  );
  return (
    <>
      <fieldset class="methods">
        <legend class="unseen">{w.method}</legend>
        {listed.map((one) => (
          <label key={one.name}>
            <input type="radio" name={name} value={one.name} checked={one.name === chosen} onChange={() => chooseMethod(all, one.name)} />
            <span>
              <strong>{one.name}</strong>{one.name === all.default && <span class="badge gold">{w.usual}</span>}
              <span class="hint">{plainOf(one)}</span>
            </span>
          </label>
        ))}
      </fieldset>
      <div class="grid">{all.settings.filter((setting) => setting.path === FIRST).map(field)}</div>
      <details class="more">
        <summary>{w.more}</summary>
        <div class="stack">
          <SelectField label={w.otherMethod} value={chosen} onValue={(value) => chooseMethod(all, value)}
            hint={method && <>{plainOf(method)} <span lang="en">{method.meaning}</span></>}
            options={all.data.map((one) => ({ value: one.name, text: one.name }))} />
          {method && method.fields.length > 0 && <><h3>{w.ofMethod}</h3><div class="grid">{method.fields.map(field)}</div></>}
          <h3>{w.ofTraining}</h3>
          <div class="grid">{all.settings.filter((setting) => setting.path !== FIRST).map(field)}</div>
        </div>
      </details>
    </>
  );
}

/** A method in plain words of the reader's language, else in the server's. */
export function plainOf(method: Method): string {
  return words.value.methods[method.name] ?? method.plain;
}

function SettingField({ setting, wrong }: { setting: Setting; wrong: ComponentChildren }) {
  const w = words.value.train;
  const fields = words.value.fields as Record<string, string>;
  const text = draft.value.values[setting.path] ?? "";
  const label = fields[setting.name] ?? setting.name;
  const help = fields[`${setting.name}_hint`] ?? setting.help;
  const hint = setting.optional && setting.default !== null ? `${help} ${w.orNone}` : help;
  const onValue = (value: string) => change({ values: { ...draft.value.values, [setting.path]: value } });
  const usual = defaultOf(setting);
  const choices = setting.type === "boolean" ? ["true", "false"] : setting.choices;
  if (choices.length && !setting.many) {
    const named = (value: string) => (setting.type === "boolean" ? (value === "true" ? w.yes : w.no) : value);
    return (
      <SelectField label={label} hint={hint} error={wrong} value={text || shown(setting.default) || NONE} onValue={onValue}
        options={[...(setting.optional ? [NONE] : []), ...choices].map((value) => ({ value, text: value === NONE ? w.none : named(value) }))} />
    );
  }
  const error = text.trim() && !fits(setting, text) ? (setting.type === "integer" ? w.wholeNumber : w.aNumber) : wrong;
  return (
    <TextField label={label} hint={hint} error={error} value={text} placeholder={usual} autocomplete="off" spellcheck={false}
      inputMode={setting.type === "string" || setting.many ? "text" : "decimal"} onValue={onValue} />
  );
}

function defaultOf(setting: Setting): string {
  if (typeof setting.default === "number") return number(setting.default, { maximumFractionDigits: 6, useGrouping: false });
  return shown(setting.default) || words.value.train.none;
}
