// The keys: made, shown once, changed, revoked.
import { useState } from "preact/hooks";
import { ApiError, get, remove, type List } from "../../api";
import { Button } from "../../parts/button";
import { Confirm } from "../../parts/confirm";
import { curl } from "../../parts/curl";
import { Loaded, useLoading } from "../../parts/loading";
import { Empty } from "../../parts/notice";
import { Table } from "../../parts/table";
import { Terminal } from "../../parts/terminal";
import { ask, session, type Role } from "../../session";
import { ago, bytes, fill, moment, number, words } from "../../words/words";
import { KeyForm } from "./key-form";

export interface Key {
  id: string;
  tenant: string;
  role: Role;
  created: string;
  expires: string | null;
  expired: boolean;
  limits: Partial<Record<Limit, number>>;
  note: string;
  /** Whether it is the caller's. */
  own: boolean;
}

export const LIMITS = ["requests", "tokens", "concurrency", "storage"] as const;
export type Limit = (typeof LIMITS)[number];
export const KEYS = "/v1/keys";
export const nameOf = (key: Key) => key.note || key.id.slice(0, 8);

export function Keys() {
  const { account: w, shell } = words.value;
  const keys = useLoading(async () => (await get<List<Key>>(KEYS)).data, []);
  const [form, setForm] = useState<{ of: Key | null } | null>(null);
  const [revoking, setRevoking] = useState<Key | null>(null);
  return (
    <section class="sheet stack">
      <header class="row between">
        <h2>{w.keys}</h2>
        <Button kind="primary" icon="add" onClick={() => setForm({ of: null })}>{w.newKey}</Button>
      </header>
      <Loaded of={keys}>
        {(all) => all.length ? (
          <Table caption={w.keys} rows={all} keyOf={(key) => key.id} columns={[
            { title: w.key, cell: (key) => <><code>{key.id.slice(0, 8)}</code> {key.own && <span class="badge">{w.own}</span>}{key.note && <span class="hint note">{key.note}</span>}</> },
            { title: w.tenant, cell: (key) => key.tenant },
            { title: w.role, cell: (key) => shell.role[key.role] },
            { title: w.expires, cell: (key) => key.expired ? <span class="badge danger">{w.expired}</span> : key.expires ? <time dateTime={key.expires} title={moment(key.expires)}>{ago(key.expires)}</time> : w.never },
            { title: w.limits, cell: (key) => limitsOf(key) || w.byServer },
            { title: w.made, cell: (key) => <time dateTime={key.created} title={moment(key.created)}>{ago(key.created)}</time> },
            { title: w.actions, cell: (key) => (
              <div class="tools">
                <Button kind="quiet" icon="settings" label={fill(w.change, { key: nameOf(key) })} onClick={() => setForm({ of: key })} />
                <Button kind="quiet" icon="trash" label={fill(w.revoke, { key: nameOf(key) })} onClick={() => setRevoking(key)} />
              </div>
            ) },
          ]} />
        ) : <Empty icon="account" title={w.noKeys} hint={w.noKeysHint} />}
      </Loaded>
      <Terminal commands={[
        { id: "halka", text: "halka keys list\nhalka keys add --role manager --expires 90d --storage 2GB\nhalka keys change ID --role user\nhalka keys revoke ID" },
        { id: "curl", text: [curl(KEYS), curl(KEYS, { json: { role: "manager", limits: { storage: 2e9 } } }), curl(`${KEYS}/ID`, { method: "PATCH", json: { role: "user" } }), curl(`${KEYS}/ID`, { method: "DELETE" })].join("\n") },
      ]} />
      {form && <KeyForm of={form.of} first={!session.value?.keys_required} onClose={() => setForm(null)} onDone={() => {
        setForm(null);
        if (form.of?.own) void ask();
        keys.again(); // not before: after the first key who has none is asked for it
      }} />}
      {revoking && <Revoke key={revoking.id} of={revoking} onClose={() => setRevoking(null)} onDone={() => {
        setRevoking(null);
        keys.again();
      }} />}
    </section>
  );
}

/** Asks once; where nobody could make keys any more, twice. */
function Revoke({ of, onDone, onClose }: { of: Key; onDone: () => void; onClose: () => void }) {
  const w = words.value.account;
  const [last, setLast] = useState(false);
  const named = { key: nameOf(of) };
  const revoke = async () => {
    try {
      await remove(`${KEYS}/${of.id}${last ? "?last=true" : ""}`);
    } catch (error) {
      if (error instanceof ApiError && error.code === "last_admin") setLast(true);
      throw error;
    }
    onDone();
  };
  return <Confirm title={fill(w.revokeTitle, named)} hint={of.own ? w.revokeOwnHint : w.revokeHint} yes={fill(last ? w.revokeLast : w.revoke, named)} onYes={revoke} onClose={onClose} />;
}

function limitsOf(key: Key): string {
  const w = words.value.account;
  return LIMITS.flatMap((limit) => {
    const value = key.limits[limit];
    return value === undefined ? [] : [fill(w.limit[limit], { n: limit === "storage" ? bytes(value) : number(value) })];
  }).join(", ");
}
