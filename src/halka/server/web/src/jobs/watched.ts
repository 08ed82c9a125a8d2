// Watches a job on a screen, from its first event to its end.
import { useSignal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { watch, type Watched } from "./jobs";

/** The job as it is now, what it did, and how to look again after a failure. */
export function useWatched(id: string): Watched & { again: () => void } {
  const watched = useSignal<Watched>({ job: null, steps: [], failure: null });
  const [times, setTimes] = useState(0);
  useEffect(() => watch(id, watched), [id, times]);
  const again = () => {
    watched.value = { ...watched.value, steps: [], failure: null }; // all come again, and after a resumption others
    setTimes(times + 1);
  };
  return { ...watched.value, again };
}
