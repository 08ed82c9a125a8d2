// Ask for advice: the data, the documents, the time, and what is good enough.
import { baseName, collections as listCollections, paramOf } from "../../api";
import { JobList } from "../../jobs/list";
import { Button } from "../../parts/button";
import { ErrorText } from "../../parts/error-text";
import { Checkbox, SelectField, TextField } from "../../parts/field";
import { FileField } from "../../parts/files";
import { useAction, useLoading } from "../../parts/loading";
import { Failure } from "../../parts/notice";
import { Terminal } from "../../parts/terminal";
import { go, link } from "../../router";
import { words } from "../../words/words";
import { Heading } from "../shown";
import { KINDS } from "../train/draft";
import { change, commandsFor, PROBES, question, start, wrongIn } from "./question";

export function AskScreen() {
  const w = words.value.advise;
  const collections = useLoading(listCollections, []);
  const base = useLoading(baseName, []).value ?? "BASE";
  const { busy, failure, run } = useAction();
  const one = question.value;
  const wrong = wrongIn(one);
  const begin = (event: Event) => {
    event.preventDefault();
    if (busy || !one.file || wrong.minutes || wrong.target) return;
    run(() => start(one), ({ id }) => go(link("advise", id)));
  };
  const of = (param: string) => (paramOf(failure, "advise") === param ? <ErrorText of={failure} /> : null);
  return (
    <div class="train">
      <Heading title={w.title} lead={w.lead} />
      <form class="sheet stack" onSubmit={begin} noValidate>
        <FileField label={w.drop} hint={words.value.train.dropHint} accept={KINDS} file={one.file} onFile={(file) => change({ file })} />
        <div class="grid">
          <SelectField label={w.collection} hint={w.collectionHint} value={one.collection} onValue={(collection) => change({ collection })}
            options={[{ value: "", text: w.noCollection }, ...(collections.value ?? []).map(({ id }) => ({ value: id, text: id }))]} />
          <TextField label={w.minutes} hint={w.minutesHint} inputMode="decimal" autocomplete="off" value={one.minutes}
            error={wrong.minutes ? w.minutesWrong : of("minutes")} onValue={(minutes) => change({ minutes })} />
          <TextField label={w.target} hint={w.targetHint} inputMode="decimal" autocomplete="off" value={one.target}
            error={wrong.target ? w.targetWrong : of("target")} onValue={(target) => change({ target })} />
          <TextField label={w.metric} hint={w.metricHint} autocomplete="off" spellcheck={false} value={one.metric}
            error={of("metric")} onValue={(metric) => change({ metric })} />
        </div>
        <Failure error={collections.failure} again={collections.again} />
        <details class="more">
          <summary>{words.value.train.more}</summary>
          <div class="stack">
            <FileField label={w.dropValidation} hint={w.validationHint} accept={KINDS} file={one.validation} onFile={(validation) => change({ validation })} />
            <fieldset class="probes">
              <legend>{w.skip}</legend>
              {PROBES.map((probe) => (
                <Checkbox key={probe} label={w[`probe_${probe}`]} checked={one.skip.includes(probe)}
                  onValue={(on) => change({ skip: on ? [...one.skip, probe] : one.skip.filter((other) => other !== probe) })} />
              ))}
            </fieldset>
            <Checkbox label={w.full} checked={one.full} onValue={(full) => change({ full })} />
          </div>
        </details>
        {failure !== null && !["minutes", "target", "metric"].some(of) && <Failure error={failure} />}
        <div class="row"><Button kind="primary" icon="advise" type="submit" busy={busy || !one.file}>{w.ask}</Button></div>
        {!one.file && <p class="hint">{w.emptyHint}</p>}
        <Terminal commands={commandsFor(one, base)} />
      </form>
      <JobList kinds={["advise"]} />
    </div>
  );
}
