// The system message that an adapter was trained with: asked without it, it answers worse than it can.
import { Button } from "../../parts/button";
import { useLoading } from "../../parts/loading";
import { fill, words } from "../../words/words";
import { columns } from "./columns";
import { system } from "./settings";

/** Of the first adapter that answers and has one, while none is set. */
export function TrainedWith({ base }: { base: string }) {
  const w = words.value.playground;
  const names = [...new Set(columns.value.map(({ model }) => model))].filter((name) => name !== base);
  const { value: adapters } = useLoading(async () => {
    const { getAdapter, namedVersion } = await import("../adapters/adapter"); // which the first load need not have
    return Promise.all(names.map((name) => getAdapter(...namedVersion(name))));
  }, [], [names.join()]);
  const trained = adapters?.find((adapter) => typeof adapter.training?.["system"] === "string");
  if (!trained || system.value.trim()) return null;
  const own = String(trained.training?.["system"]);
  return (
    <p class="row hint trained-with">
      <span dir="auto">{fill(w.trainedWith, { model: trained.id, system: own })}</span>
      <Button kind="quiet" onClick={() => { system.value = own; }}>{w.useSystem}</Button>
    </p>
  );
}
