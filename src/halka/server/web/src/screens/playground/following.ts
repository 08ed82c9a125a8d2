// A conversation that grows stays in sight at its end, for as long as its reader is there.
import { useEffect, useRef } from "preact/hooks";

/** What grows and its end, as `ref`s, and what brings the reader to the end. It is followed while `growing`. */
export function useFollowing(growing: boolean) {
  const conversation = useRef<HTMLDivElement>(null);
  const end = useRef<HTMLDivElement>(null);
  const isThere = useRef(true);
  const toEnd = () => {
    isThere.current = true;
    end.current?.scrollIntoView({ block: "end" });
  };
  useEffect(() => {
    let before = scrollY;
    const look = () => {
      const below = (end.current?.getBoundingClientRect().bottom ?? 0) - innerHeight;
      isThere.current = below <= 0 || (isThere.current && scrollY >= before); // what has just come is below, too
      before = scrollY;
    };
    const resized = new ResizeObserver(() => (before = scrollY)); // a page that gets shorter moves without its reader
    resized.observe(document.body);
    addEventListener("scroll", look);
    return () => {
      resized.disconnect();
      removeEventListener("scroll", look);
    };
  }, []);
  useEffect(() => {
    if (!growing || !conversation.current) return;
    const growth = new ResizeObserver(() => isThere.current && toEnd());
    growth.observe(conversation.current);
    return () => growth.disconnect();
  }, [growing]);
  return { conversation, end, toEnd };
}
