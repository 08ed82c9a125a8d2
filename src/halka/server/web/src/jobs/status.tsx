import type { Status } from "./jobs";
import { words } from "../words/words";

const KIND: Record<Status, string> = {
  queued: "badge", running: "badge gold", stopping: "badge gold", stopped: "badge", interrupted: "badge danger", failed: "badge danger", done: "badge",
};

export function StatusBadge({ status }: { status: Status }) {
  return <span class={KIND[status] ?? "badge"}>{words.value.jobs[status] ?? status}</span>;
}
