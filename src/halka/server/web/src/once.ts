// What is shown but once, as the text of a key: until it has been read, nothing takes it from sight.
let shown = 0;
const waiting = new Set<() => void>();

export const isShownOnce = () => shown > 0;

/** Do this now, or when what is shown but once has been read. */
export function onceRead(then: () => void): void {
  if (shown) waiting.add(then);
  else then();
}

/** Something is shown but once, until the function that this returns is called. */
export function showOnce(): () => void {
  const confirm = (event: Event) => event.preventDefault(); // the browser asks whether to leave
  shown += 1;
  addEventListener("beforeunload", confirm);
  return () => {
    removeEventListener("beforeunload", confirm);
    shown -= 1;
    if (shown) return;
    const all = [...waiting];
    waiting.clear();
    for (const then of all) then();
  };
}
