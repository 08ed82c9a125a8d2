// Makes a key; its text is shown once.
import { useState } from "preact/hooks";
import { post } from "../../api";
import { Button } from "../../parts/button";
import { curl } from "../../parts/curl";
import { Dialog } from "../../parts/dialog";
import { SelectField, TextField } from "../../parts/field";
import { useAction } from "../../parts/loading";
import { Failure, Notice } from "../../parts/notice";
import { Code, quoted, Terminal } from "../../parts/terminal";
import { showWrong } from "../../parts/wrong";
import { session, type Role } from "../../session";
import { fill, number, typed, words } from "../../words/words";
import { KEYS, LIMITS, type Key, type Limit } from "./keys";

const MAIN = "main";
const ROLES: Role[] = ["user", "manager", "admin", "monitor"];
const DAYS = ["", "1", "7", "30", "90", "365"] as const;
const GB = 1e9;

export function NewKey({ first, onClose }: { first: boolean; onClose: () => void }) {
  const { account: w, shell, parts } = words.value;
  const own = session.value?.tenant ?? MAIN;
  const [tenant, setTenant] = useState(own);
  const [role, setRole] = useState<Role>(first ? "admin" : "user");
  const [days, setDays] = useState<string>("");
  const [note, setNote] = useState("");
  const [limits, setLimits] = useState<Record<Limit, string>>({ requests: "", tokens: "", concurrency: "", storage: "" });
  const [text, setText] = useState<string | null>(null);
  const { busy, failure, run } = useAction();
  const wrong = (limit: Limit) => {
    const value = typed(limits[limit]);
    return limits[limit].trim() !== "" && !(value > 0 && (limit === "storage" || Number.isInteger(value)));
  };
  const filled = LIMITS.filter((limit) => limits[limit].trim() !== "" && !wrong(limit));
  const body = () => ({
    ...(tenant.trim() !== own && { tenant: tenant.trim() }),
    role,
    ...(days && { expires: new Date(Date.now() + Number(days) * 86_400_000).toISOString() }),
    ...(filled.length && { limits: Object.fromEntries(filled.map((limit) => [limit, Math.round(typed(limits[limit]) * (limit === "storage" ? GB : 1))])) }),
    ...(note.trim() && { note: note.trim() }),
  });
  const flags = [
    ...(tenant.trim() !== MAIN ? [`--tenant ${quoted(tenant.trim())}`] : []), `--role ${role}`, ...(days ? [`--expires ${days}d`] : []),
    ...filled.map((limit) => `--${limit} ${typed(limits[limit])}${limit === "storage" ? "GB" : ""}`), ...(note.trim() ? [`--note ${quoted(note.trim())}`] : []),
  ];
  if (text !== null) {
    return (
      <Dialog firm title={w.madeTitle} onClose={onClose}>
        <Notice kind="warning">{first ? w.onceFirst : w.once}</Notice>
        <Code text={text} />
        <div class="row"><Button kind="primary" onClick={onClose}>{w.copied}</Button></div>
      </Dialog>
    );
  }
  return (
    <Dialog title={w.newKey} onClose={() => !busy && onClose()}>
      <form class="stack" noValidate onSubmit={(event) => {
        event.preventDefault();
        if (LIMITS.some(wrong)) showWrong(event.currentTarget);
        else if (!busy) run(async () => setText((await post<Key & { key: string }>(KEYS, body())).key));
      }}>
        {first && <Notice kind="warning">{w.firstHint}</Notice>}
        <SelectField label={w.role} value={role} onValue={(value) => setRole(value as Role)} hint={w.may[role]}
          options={ROLES.map((value) => ({ value, text: shell.role[value] }))} />
        {own === MAIN && <TextField label={w.tenant} value={tenant} onValue={setTenant} autocomplete="off" spellcheck={false} hint={w.tenantHint} />}
        <SelectField label={w.expires} value={days} onValue={setDays}
          options={DAYS.map((value) => ({ value, text: value ? fill(w.inDays, { n: number(Number(value)) }) : w.asYours }))} />
        <TextField label={w.note} value={note} onValue={setNote} autocomplete="off" maxLength={200} hint={w.noteHint} />
        <details>
          <summary>{w.limits}</summary>
          <div class="limits">
            {LIMITS.map((limit) => (
              <TextField key={limit} label={w.limitName[limit]} inputMode="decimal" autocomplete="off" placeholder={w.byServer} value={limits[limit]}
                error={wrong(limit) ? w.limitWrong : null} onValue={(value) => setLimits({ ...limits, [limit]: value })} />
            ))}
          </div>
        </details>
        {failure && <Failure error={failure} />}
        <div class="row">
          <Button kind="primary" type="submit" busy={busy}>{w.make}</Button>
          <Button onClick={onClose}>{parts.cancel}</Button>
        </div>
        <Terminal commands={[
          { id: "halka", title: "halka", text: `halka keys add ${flags.join(" ")}` },
          { id: "curl", title: "curl", text: curl(KEYS, { json: body() }) },
        ]} />
      </form>
    </Dialog>
  );
}
