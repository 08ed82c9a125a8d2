// "The same in a terminal": what a screen does, as commands to copy.
import { useId, useRef, useState } from "preact/hooks";
import { words } from "../words/words";
import { Copy } from "./copy";

export interface Command {
  id: string;
  /** Its id where it has none. */
  title?: string;
  text: string;
}

export function Terminal({ commands }: { commands: Command[] }) {
  const title = words.value.parts.terminal;
  const [first] = commands;
  return (
    <details class="terminal">
      <summary>{title}</summary>
      {commands.length > 1 ? <Tabs label={title} commands={commands} /> : first && <Code text={first.text} />}
    </details>
  );
}

/** Tabs by the usual keys: arrows, Home and End move, and show what they come to. */
function Tabs({ label, commands }: { label: string; commands: Command[] }) {
  const [chosen, choose] = useState(commands[0]?.id);
  const list = useRef<HTMLDivElement>(null);
  const id = useId();
  const at = Math.max(0, commands.findIndex((tab) => tab.id === chosen));
  const shown = commands[at];
  if (!shown) return null;
  const move = (event: KeyboardEvent) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: commands.length - 1 }[event.key];
    const tab = to === undefined ? undefined : commands[(to + commands.length) % commands.length];
    if (!tab) return;
    event.preventDefault();
    choose(tab.id);
    list.current?.querySelector<HTMLElement>(`[data-tab="${tab.id}"]`)?.focus();
  };
  return (
    <div class="tabs">
      <div role="tablist" aria-label={label} ref={list} onKeyDown={move}>
        {commands.map((tab) => (
          <button key={tab.id} type="button" role="tab" id={`${id}-${tab.id}`} data-tab={tab.id}
            aria-selected={tab.id === shown.id} aria-controls={`${id}-panel`} tabIndex={tab.id === shown.id ? 0 : -1}
            onClick={() => choose(tab.id)}>
            {tab.title ?? tab.id}
          </button>
        ))}
      </div>
      <div role="tabpanel" id={`${id}-panel`} aria-labelledby={`${id}-${shown.id}`}><Code text={shown.text} /></div>
    </div>
  );
}

/** A text to copy, as it is. */
export function Code({ text }: { text: string }) {
  return (
    <div class="code">
      <pre tabIndex={0}><code>{text}</code></pre>
      <Copy text={text} />
    </div>
  );
}

/** A word as a POSIX shell reads it. */
export function quoted(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`;
}
