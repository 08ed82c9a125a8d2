// The page's address: real paths, kept in step with the browser's history.
import { computed, signal } from "@preact/signals";
import { isShownOnce } from "./once";
import { tried } from "./tried";

const here = () => location.pathname + location.search;
export const address = signal(here());

/** The parts of the path, decoded: `["adapters", "support"]`. */
export const parts = computed(() => (address.value.split("?")[0] ?? "").split("/").filter(Boolean).map((part) => tried(() => decodeURIComponent(part)) ?? part));
export const query = computed(() => new URLSearchParams(address.value.split("?")[1] ?? ""));

/** Go to an address of the page; `replace` leaves no entry in the history. */
export function go(to: string, { replace = false } = {}): void {
  if (to === here()) return;
  history[replace ? "replaceState" : "pushState"](null, "", to);
  address.value = here();
}

/** Change what the address says after its path, so that it opens what is shown; null leaves a name out. */
export function changeQuery(change: Record<string, string | null>): void {
  const now = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(change)) {
    if (value === null) now.delete(name);
    else now.set(name, value);
  }
  go(location.pathname + (now.size ? `?${now}` : ""), { replace: true });
}

/** A whole number above 0 in the address, else 1. */
export function wholeNumberIn(name: string): number {
  const value = Number(query.value.get(name));
  return Number.isSafeInteger(value) && value > 0 ? value : 1;
}

/** Keep the address in step: links within the page load nothing anew. */
export function follow(): void {
  addEventListener("popstate", () => {
    if (isShownOnce()) history.pushState(null, "", address.peek());
    else address.value = here();
  });
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest("a") : null;
    const plain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
    if (!link || !plain || event.defaultPrevented || link.target || link.hasAttribute("download")) return;
    const url = new URL(link.href);
    if (url.origin !== location.origin || url.pathname.startsWith("/v1/") || url.hash) return;
    event.preventDefault();
    go(url.pathname + url.search);
  });
}

/** An address of the page from parts of any text. */
export function link(...path: string[]): string {
  return `/${path.map(encodeURIComponent).join("/")}`;
}
