import type { ComponentChildren } from "preact";
import { useId, useRef, useState } from "preact/hooks";

export interface Tab {
  id: string;
  title: string;
  content: () => ComponentChildren;
}

/** Tabs by the usual keys: arrows, Home and End move, and show what they come to. */
export function Tabs({ label, tabs }: { label: string; tabs: Tab[] }) {
  const [chosen, choose] = useState(tabs[0]?.id);
  const list = useRef<HTMLDivElement>(null);
  const id = useId();
  const at = Math.max(0, tabs.findIndex((tab) => tab.id === chosen));
  const shown = tabs[at];
  if (!shown) return null;
  const move = (event: KeyboardEvent) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    const tab = to === undefined ? undefined : tabs[(to + tabs.length) % tabs.length];
    if (!tab) return;
    event.preventDefault();
    choose(tab.id);
    list.current?.querySelector<HTMLElement>(`[data-tab="${tab.id}"]`)?.focus();
  };
  return (
    <div class="tabs">
      <div role="tablist" aria-label={label} ref={list} onKeyDown={move}>
        {tabs.map((tab) => (
          <button key={tab.id} type="button" role="tab" id={`${id}-${tab.id}`} data-tab={tab.id}
            aria-selected={tab.id === shown.id} aria-controls={`${id}-panel`} tabIndex={tab.id === shown.id ? 0 : -1}
            onClick={() => choose(tab.id)}>
            {tab.title}
          </button>
        ))}
      </div>
      <div role="tabpanel" id={`${id}-panel`} aria-labelledby={`${id}-${shown.id}`}>{shown.content()}</div>
    </div>
  );
}
