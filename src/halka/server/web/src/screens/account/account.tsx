// Who is signed in, what was used and is stored, and for admins the keys: who may call, as whom, how much.
import "./account.css";
import { useLoading } from "../../parts/loading";
import { Terms } from "../../parts/terms";
import { may, session } from "../../session";
import { moment, words } from "../../words/words";
import { Heading } from "../shown";
import { Keys } from "./keys";
import { getUsage, Use } from "./use";

export default function Account() {
  const w = words.value.account;
  const usage = useLoading(getUsage, []);
  return (
    <div class="stack">
      <Heading title={w.title} lead={w.lead} />
      <Who />
      <Use usage={usage} />
      {may("admin") && <Keys />}
    </div>
  );
}

function Who() {
  const { account: w, shell } = words.value;
  const who = session.value;
  if (!who) return null;
  return (
    <section class="sheet stack">
      <h2>{w.who}</h2>
      {who.keys_required ? (
        <>
          <Terms of={[
            [w.tenant, who.tenant],
            [w.role, shell.role[who.role]],
            [w.key, who.key && <code>{who.key}</code>],
            [w.ends, who.expires ? moment(who.expires) : w.never],
          ]} />
          <p class="hint">{w.may[who.role]}</p>
        </>
      ) : <p>{w.open}</p>}
    </section>
  );
}
