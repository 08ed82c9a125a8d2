// "The same in a terminal": what a screen does, as commands to copy.
import { words } from "../words/words";
import { Copy } from "./copy";
import { Tabs } from "./tabs";

export interface Command {
  id: string;
  title: string;
  text: string;
}

export function Terminal({ commands }: { commands: Command[] }) {
  const title = words.value.parts.terminal;
  const [first] = commands;
  return (
    <details class="terminal">
      <summary>{title}</summary>
      {commands.length > 1
        ? <Tabs label={title} tabs={commands.map(({ id, title, text }) => ({ id, title, content: () => <Code text={text} /> }))} />
        : first && <Code text={first.text} />}
    </details>
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
