// What a tenant has asked, by adapter, and stores; for the operator what each tenant has.
import { get } from "../../api";
import { curl } from "../../parts/curl";
import { Loaded, type Loading } from "../../parts/loading";
import { Progress } from "../../parts/progress";
import { Table } from "../../parts/table";
import { Terminal } from "../../parts/terminal";
import { Terms } from "../../parts/terms";
import { bytes, fill, moment, number, words } from "../../words/words";

interface Used {
  /** Null: the bare base. */
  adapter: string | null;
  requests: number;
  prompt_tokens: number;
  cached_tokens: number;
  completion_tokens: number;
  answers: Record<"stop" | "length" | "cancelled" | "error", number>;
}

interface OfTenant {
  tenant: string;
  adapters: Used[];
  storage: { used: number; allowed?: number | null };
}

export interface Usage extends OfTenant {
  since: number;
  /** Null for all but the operator. */
  tenants: OfTenant[] | null;
}

const USAGE = "/v1/usage";
export const getUsage = () => get<Usage>(USAGE);
const OTHERS = "(other)";

export function Use({ usage }: { usage: Loading<Usage> }) {
  const w = words.value.account;
  return (
    <section class="sheet stack">
      <h2>{w.use}</h2>
      <Loaded of={usage}>{(all) => <Shown usage={all} />}</Loaded>
      <Terminal commands={[{ id: "curl", text: curl(USAGE) }]} />
    </section>
  );
}

function Shown({ usage }: { usage: Usage }) {
  const w = words.value.account;
  const { used, allowed } = usage.storage;
  const others = (usage.tenants ?? []).filter((tenant) => tenant.tenant !== usage.tenant);
  return (
    <>
      {allowed ? (
        <>
          <Progress label={w.stored} share={used / allowed} />
          <p class="hint">{fill(w.storedOf, { used: bytes(used), allowed: bytes(allowed) })}</p>
        </>
      ) : <Terms of={[[w.stored, bytes(used)]]} />}
      <p class="hint">{fill(w.since, { when: moment(usage.since) })}</p>
      {usage.adapters.length ? (
        <Table caption={w.byAdapter} rows={usage.adapters} keyOf={({ adapter }) => adapter ?? ""} columns={[
          { title: w.adapter, cell: ({ adapter }) => (adapter === null ? w.base : adapter === OTHERS ? w.others : adapter) },
          { title: w.requests, numeric: true, cell: (one) => number(one.requests) },
          { title: w.prompt, numeric: true, cell: (one) => number(one.prompt_tokens) },
          { title: w.cached, numeric: true, cell: (one) => number(one.cached_tokens) },
          { title: w.completion, numeric: true, cell: (one) => number(one.completion_tokens) },
          { title: w.whole, numeric: true, cell: ({ answers }) => number(answers.stop) },
          { title: w.cut, numeric: true, cell: ({ answers }) => number(answers.length) },
          { title: w.ended, numeric: true, cell: ({ answers }) => number(answers.cancelled + answers.error) },
        ]} />
      ) : <p>{w.nothingUsed}</p>}
      {others.length > 0 && (
        <>
          <h3>{w.byTenant}</h3>
          <Table caption={w.byTenant} rows={usage.tenants ?? []} keyOf={({ tenant }) => tenant} columns={[
            { title: w.tenant, cell: ({ tenant }) => tenant },
            { title: w.requests, numeric: true, cell: ({ adapters }) => number(sum(adapters, (one) => one.requests)) },
            { title: w.prompt, numeric: true, cell: ({ adapters }) => number(sum(adapters, (one) => one.prompt_tokens)) },
            { title: w.completion, numeric: true, cell: ({ adapters }) => number(sum(adapters, (one) => one.completion_tokens)) },
            { title: w.stored, numeric: true, cell: ({ storage }) => bytes(storage.used) },
          ]} />
        </>
      )}
    </>
  );
}

const sum = (all: Used[], of: (one: Used) => number) => all.reduce((total, one) => total + of(one), 0);
