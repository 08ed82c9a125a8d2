import { useEffect, useRef, useState } from "preact/hooks";

/** How wide an element is drawn, in pixels, and what to give it as its `ref`: so that a plot's letters keep their size. */
export function useWidth<Element extends HTMLElement>(before: number) {
  const ref = useRef<Element>(null);
  const [width, setWidth] = useState(before);
  useEffect(() => {
    const watching = new ResizeObserver(([entry]) => {
      const now = Math.round(entry?.contentRect.width ?? 0);
      if (now > 0) setWidth(now);
    });
    if (ref.current) watching.observe(ref.current);
    return () => watching.disconnect();
  }, []);
  return { ref, width };
}
