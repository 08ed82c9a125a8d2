// One adapter: what it is, how it was trained, its versions and files, and everything that can be done with it.
import { useState } from "preact/hooks";
import { Button } from "../../parts/button";
import { LineChart } from "../../parts/chart";
import { Confirm } from "../../parts/confirm";
import { curl } from "../../parts/curl";
import { Icon } from "../../parts/icons";
import { Loaded, useAction, useLoading } from "../../parts/loading";
import { Failure, Notice } from "../../parts/notice";
import { Table } from "../../parts/table";
import { quoted, Terminal } from "../../parts/terminal";
import { Terms } from "../../parts/terms";
import { go, link, query } from "../../router";
import { may } from "../../session";
import { bytes, count, duration, fill, moment, number, words } from "../../words/words";
import { Heading } from "../shown";
import { archiveOf, change, fieldsOf, figuresOf, getAdapter, methodOf, modelOf, newestOf, pathOf, removeAdapter, textOf, versionedName, type Whole } from "./adapter";
import { Badges, TryIt } from "./card";
import { Merge } from "./merge";
import { Tags } from "./tags";
import { Upload } from "./upload";

export function Details({ name, base }: { name: string; base: string | null }) {
  const w = words.value.adapters;
  const asked = Number(query.value.get("version")) || null;
  const adapter = useLoading(() => getAdapter(name, asked), [name, asked]);
  return (
    <div class="stack">
      <p><a href={link("adapters")}>{w.all}</a></p>
      <Loaded of={adapter}>
        {(one) => (
          <>
            <Heading title={one.versions.length > 1 ? fill(w.titleOf, { name: one.id, n: one.version }) : one.id}
              lead={one.error ? w.damagedLead : one.method ? methodOf(one) : w.noCard}>
              {!one.error && <TryIt adapter={one} base={base} />}
            </Heading>
            {one.version !== newestOf(one) && <Notice kind="info"><p>{fill(w.newerAnswers, { n: newestOf(one), name: modelOf(one) })}</p></Notice>}
            <Badges adapter={one} />
            {one.error && <Notice kind="error"><p lang="en">{one.error}</p><p>{w.damagedHint}</p></Notice>}
            {may("manager") && <Actions adapter={one} again={adapter.again} />}
            <div class="details">
              <div class="stack">
                <Facts adapter={one} />
                <Versions adapter={one} />
              </div>
              <div class="stack">
                <Training adapter={one} />
                <Files adapter={one} />
              </div>
            </div>
            {may("manager") && !one.error && <Merge adapter={one} />}
            <Commands adapter={one} />
          </>
        )}
      </Loaded>
    </div>
  );
}

function Actions({ adapter, again }: { adapter: Whole; again: () => void }) {
  const w = words.value.adapters;
  const { busy, failure, run } = useAction();
  const [open, setOpen] = useState<"replace" | "tags" | "remove" | null>(null);
  const { id } = adapter;
  const close = () => setOpen(null);
  const act = (how: Parameters<typeof change>[1]) => run(() => change(id, how).then(again));
  return (
    <div class="stack">
      <div class="row">
        {!adapter.error && (adapter.loaded
          ? !adapter.pinned && <Button busy={busy} onClick={() => act("unload")}>{w.unload}</Button>
          : <Button busy={busy} onClick={() => act("load")}>{w.load}</Button>)}
        {!adapter.error && <Button busy={busy} onClick={() => act(adapter.pinned ? "unpin" : "pin")}>{adapter.pinned ? w.unpin : w.pin}</Button>}
        <Button icon="upload" onClick={() => setOpen("replace")}>{w.replace}</Button>
        <Button onClick={() => setOpen("tags")}>{w.tags}</Button>
        {!adapter.error && <a class="button" href={archiveOf(id, adapter.version)} download><Icon name="download" />{w.download}</a>}
        <Button kind="danger" icon="trash" onClick={() => setOpen("remove")}>{w.remove}</Button>
      </div>
      {!adapter.error && <p class="hint">{adapter.pinned ? w.pinnedHint : adapter.loaded ? w.loadedHint : w.unloadedHint}{adapter.requests > 0 && ` ${count(w.inUse, adapter.requests)}`}</p>}
      <Failure error={failure} />
      {open === "tags" && <Tags adapter={adapter} onClose={close} onDone={() => {
        close();
        again();
      }} />}
      {open === "replace" && <Upload name={id} onClose={close} onDone={() => {
        close();
        go(link("adapters", id), { replace: true });
        again();
      }} />}
      {open === "remove" && <Confirm title={fill(w.removeTitle, { name: id })} hint={count(w.removeHint, adapter.versions.length)} yes={fill(w.removeYes, { name: id })}
        onYes={() => removeAdapter(id, null)} onDone={() => go(link("adapters"))} onClose={close} />}
    </div>
  );
}

function Facts({ adapter }: { adapter: Whole }) {
  const w = words.value.adapters;
  const fields: Record<string, string> = words.value.fields;
  return (
    <section class="sheet stack">
      <h2>{w.facts}</h2>
      <Terms of={[
        [w.base, adapter.base],
        [w.method, adapter.method?.name],
        ...fieldsOf(adapter.method).map(([name, value]): [string, string] => [fields[name] ?? name, value]),
        [w.parameters, adapter.parameters === null ? null : number(adapter.parameters)],
        [w.size, bytes(adapter.bytes)],
        [w.added, moment(adapter.created_at)],
        [w.content, adapter.fingerprint && <code title={adapter.fingerprint}>{adapter.fingerprint.slice(0, 12)}</code>],
      ]} />
    </section>
  );
}

const OF_TRAINING = ["examples", "steps", "best_step", "epochs", "tokens", "lr", "loss"] as const;

function Training({ adapter }: { adapter: Whole }) {
  const w = words.value.adapters;
  const { training, curve } = adapter;
  const figures = figuresOf(adapter.measurements);
  if (!Object.keys(training ?? {}).length && !curve?.length && !figures.length) return null;
  const points = curve ?? [];
  const seconds = training?.["seconds"];
  return (
    <section class="sheet stack">
      <h2>{w.training}</h2>
      {points.length > 1 && (
        <LineChart title={w.loss} x={w.step} y={w.loss} series={[
          { name: w.trainingLoss, points: points.map(({ step, loss }) => ({ x: step, y: loss })) },
          { name: w.validationLoss, points: points.flatMap(({ step, validation }) => (validation === null ? [] : [{ x: step, y: validation }])) },
        ].filter((series) => series.points.length)} />
      )}
      <Terms of={[
        ...figures,
        ...OF_TRAINING.map((name): [string, string | null] => [w.of[name], training?.[name] === undefined || training[name] === null ? null : textOf(training[name])]),
        [w.time, typeof seconds === "number" ? duration(seconds) : null],
        [w.trained, adapter.trained_at && moment(adapter.trained_at)],
      ]} />
    </section>
  );
}

function Versions({ adapter }: { adapter: Whole }) {
  const w = words.value.adapters;
  const [removing, setRemoving] = useState<number | null>(null);
  return (
    <section class="sheet stack">
      <h2>{w.versions}</h2>
      <p class="hint">{fill(w.versionsHint, { name: versionedName(adapter.id, Math.min(...adapter.versions)) })}</p>
      <Table caption={w.versions} rows={[...adapter.versions].reverse()} keyOf={String} columns={[
        { title: w.version, cell: (version) => (
          <>
            <a href={`${link("adapters", adapter.id)}?version=${version}`} aria-current={version === adapter.version || undefined}>{number(version)}</a>
            {" "}{version === newestOf(adapter) && <span class="badge">{w.newest}</span>}
            {" "}{version === adapter.version && adapter.versions.length > 1 && <span class="badge gold">{w.shownHere}</span>}
          </>
        ) },
        { title: w.actions, cell: (version) => may("manager") && (
          <div class="tools">
            <a class="button quiet bare" href={archiveOf(adapter.id, version)} download aria-label={fill(w.downloadVersion, { n: version })} title={fill(w.downloadVersion, { n: version })}><Icon name="download" /></a>
            {adapter.versions.length > 1 && <Button kind="quiet" icon="trash" label={fill(w.removeVersion, { n: version })} onClick={() => setRemoving(version)} />}
          </div>
        ) },
      ]} />
      {removing !== null && <Confirm title={fill(w.removeVersionTitle, { name: adapter.id, n: removing })} hint={w.removeVersionHint} yes={fill(w.removeVersion, { n: removing })}
        onYes={() => removeAdapter(adapter.id, removing)} onDone={() => go(link("adapters"))} onClose={() => setRemoving(null)} />}
    </section>
  );
}

function Files({ adapter }: { adapter: Whole }) {
  const w = words.value.adapters;
  return (
    <section class="sheet stack">
      <h2>{w.files}</h2>
      <Terms of={Object.entries(adapter.files).map(([file, size]) => [file, bytes(size)])} />
      <p class="hint">{w.filesHint}</p>
    </section>
  );
}

function Commands({ adapter }: { adapter: Whole }) {
  const w = words.value.adapters;
  const path = pathOf(adapter.id);
  const name = quoted(adapter.id);
  const text = (how: string) => curl(`${path}/${how}`, { method: "POST" });
  const version = adapter.versions.length > 1 ? adapter.version : null;
  return (
    <Terminal commands={[
      { id: "halka", text: [
        `halka adapters show ${name} --store adapters`,
        `halka adapters tag ${name} live --store adapters`,
        ...(version === null ? [] : [`halka adapters remove ${name} --version ${version} --store adapters`]),
        `halka adapters remove ${name} --store adapters`,
      ].join("\n") },
      { id: "memory", title: w.memory, text: ["load", "pin", "unpin", "unload"].map(text).join("\n") },
      { id: "download", title: w.download, text: curl(archiveOf(adapter.id, version), { into: `${adapter.id}.zip` }) },
      { id: "remove", title: w.remove, text: [
        ...(version === null ? [] : [curl(`${path}?version=${version}`, { method: "DELETE" })]),
        curl(path, { method: "DELETE" }),
      ].join("\n") },
    ]} />
  );
}
