// Makes a key, whose text is shown once, or changes what one may do.
import { useState } from "preact/hooks";
import { ApiError, patch, post } from "../../api";
import { Button } from "../../parts/button";
import { curl } from "../../parts/curl";
import { Dialog } from "../../parts/dialog";
import { SelectField, showWrong, TextField } from "../../parts/field";
import { useAction } from "../../parts/loading";
import { Failure, Notice } from "../../parts/notice";
import { Code, quoted, Terminal } from "../../parts/terminal";
import { session, type Role } from "../../session";
import { fill, number, typed, words } from "../../words/words";
import { KEYS, LIMITS, nameOf, type Key, type Limit } from "./keys";

const MAIN = "main";
const ROLES: Role[] = ["user", "manager", "admin", "monitor"];
const DAYS = ["", "1", "7", "30", "90", "365"] as const;
const GB = 1e9;
const unitOf = (limit: Limit) => (limit === "storage" ? GB : 1);

/** `of`: the key that is changed; null: a new one, which is the `first` of all or not. */
export function KeyForm({ of, first, onDone, onClose }: { of: Key | null; first: boolean; onDone: () => void; onClose: () => void }) {
  const { account: w, shell, parts } = words.value;
  const own = session.value?.tenant ?? MAIN;
  const [tenant, setTenant] = useState(of?.tenant ?? own);
  const [role, setRole] = useState<Role>(of?.role ?? (first ? "admin" : "user"));
  const [days, setDays] = useState<string>("");
  const [note, setNote] = useState(of?.note ?? "");
  const [limits, setLimits] = useState(() => limitsIn(of));
  const [text, setText] = useState<string | null>(null);
  const { busy, failure, run } = useAction();
  const last = failure instanceof ApiError && failure.code === "last_admin"; // asked for again, it is done all the same
  const close = () => busy || onClose(); // else the text of the key that comes would be lost
  const wrong = (limit: Limit) => {
    const value = typed(limits[limit]);
    return limits[limit].trim() !== "" && !(value > 0 && (limit === "storage" || Number.isInteger(value)));
  };
  const filled = LIMITS.filter((limit) => limits[limit].trim() !== "" && !wrong(limit));
  const limited: Key["limits"] = Object.fromEntries(filled.map((limit) => [limit, Math.round(typed(limits[limit]) * unitOf(limit))]));
  const newLimits = !of || LIMITS.some((limit) => limited[limit] !== of.limits[limit]);
  const newNote = note.trim() !== (of?.note ?? "");
  const body = () => (of ? {
    ...(role !== of.role && { role }),
    ...(newLimits && { limits: limited }), // else what is left out would become as the own key's
    ...(newNote && { note: note.trim() }),
  } : {
    ...(tenant.trim() !== own && { tenant: tenant.trim() }),
    role,
    ...(days && { expires: new Date(Date.now() + Number(days) * 86_400_000).toISOString() }),
    ...(filled.length && { limits: limited }),
    ...(newNote && { note: note.trim() }),
  });
  const flags = [
    ...(!of && tenant.trim() !== MAIN ? [`--tenant ${quoted(tenant.trim())}`] : []),
    ...(role !== of?.role ? [`--role ${role}`] : []),
    ...(days ? [`--expires ${days}d`] : []),
    ...LIMITS.filter((limit) => limited[limit] !== of?.limits[limit])
      .map((limit) => `--${limit} ${limited[limit] === undefined ? "none" : typed(limits[limit])}${limited[limit] && limit === "storage" ? "GB" : ""}`),
    ...(newNote ? [`--note ${quoted(note.trim())}`] : []),
  ];
  const command = ["halka keys", of ? `change ${of.id}` : "add", ...flags].join(" ");
  const path = of ? `${KEYS}/${of.id}${last && role !== "admin" ? "?last=true" : ""}` : KEYS;
  const send = async () => {
    if (of) await patch(path, body()).then(onDone);
    else setText((await post<Key & { key: string }>(KEYS, body())).key);
  };
  if (text !== null) {
    return (
      <Dialog firm title={w.madeTitle} onClose={onDone}>
        <Notice kind="warning">{first ? w.onceFirst : w.once}</Notice>
        <Code text={text} />
        <div class="row"><Button kind="primary" onClick={onDone}>{w.copied}</Button></div>
      </Dialog>
    );
  }
  return (
    <Dialog firm={busy} title={of ? fill(w.changeTitle, { key: nameOf(of) }) : w.newKey} onClose={close}>
      <form class="stack" noValidate onSubmit={(event) => {
        event.preventDefault();
        if (LIMITS.some(wrong)) showWrong(event.currentTarget);
        else if (!busy) run(send);
      }}>
        {first && <Notice kind="warning">{w.firstHint}</Notice>}
        {of && <p class="hint">{w.changeHint}</p>}
        <SelectField label={w.role} value={role} onValue={(value) => setRole(value as Role)} hint={w.may[role]}
          options={ROLES.map((value) => ({ value, text: shell.role[value] }))} />
        {!of && own === MAIN && <TextField label={w.tenant} value={tenant} onValue={setTenant} autocomplete="off" spellcheck={false} hint={w.tenantHint} />}
        {!of && (
          <SelectField label={w.expires} value={days} onValue={setDays}
            options={DAYS.map((value) => ({ value, text: value ? fill(w.inDays, { n: number(Number(value)) }) : first ? w.never : w.asYours }))} />
        )}
        <TextField label={w.note} value={note} onValue={setNote} autocomplete="off" maxLength={200} hint={w.noteHint} />
        <details open={of !== null}>
          <summary>{w.limits}</summary>
          <div class="limits">
            {LIMITS.map((limit) => (
              <TextField key={limit} label={w.limitName[limit]} inputMode="decimal" autocomplete="off" placeholder={w.byServer} value={limits[limit]}
                error={wrong(limit) ? w.limitWrong : null} onValue={(value) => setLimits({ ...limits, [limit]: value })} />
            ))}
          </div>
        </details>
        <Failure error={failure} />
        {last && <p>{w.lastHint}</p>}
        <div class="row">
          <Button kind={last ? "danger" : "primary"} type="submit" busy={busy}>{last ? w.saveLast : of ? w.save : w.make}</Button>
          <Button onClick={close}>{parts.cancel}</Button>
        </div>
        <Terminal commands={[
          { id: "halka", text: command },
          { id: "curl", text: curl(path, { ...(of && { method: "PATCH" }), json: body() }) },
        ]} />
      </form>
    </Dialog>
  );
}

/** What the fields show of a key's limits. */
function limitsIn(key: Key | null): Record<Limit, string> {
  const shown = (limit: Limit) => String((key?.limits[limit] ?? NaN) / unitOf(limit)).replace("NaN", "");
  return { requests: shown("requests"), tokens: shown("tokens"), concurrency: shown("concurrency"), storage: shown("storage") };
}
