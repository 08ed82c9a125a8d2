// A model's text as paragraphs, lists, tables and code. Elements are made of it, never HTML, and what marks none of these stays.
import type { ComponentChildren } from "preact";
import { words } from "../words/words";
import { Code } from "./terminal";

/** What stands in the place of a text such as `[1]`. */
export type Marks = ReadonlyMap<string, () => ComponentChildren>;

/** What a block that begins at a line becomes, and the line behind it. */
type Block = (lines: string[], at: number, marks: Marks, depth: number) => [shown: ComponentChildren, next: number];

const FENCE = /^ {0,3}(`{3,}|~{3,})[^`]*$/;
const TITLE = /^ {0,3}#{1,6} +(?=\S)/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const ITEM = /^ ?(?:[-*+]|(\d{1,9})[.)]) +(?=\S)/;
const DEEPEST = 8; // lists within lists

export function Prose({ text, marks }: { text: string; marks: Marks }) {
  return <div class="prose" dir="auto">{blocks(text.split(/\r?\n/), marks, 0)}</div>;
}

/** The same as it was written, but for the marks. */
export function Written({ text, marks }: { text: string; marks: Marks }) {
  const pieces = marks.size ? text.split(/(\[[^\]\n]{1,200}\])/) : [text];
  return <p class="plain-text" dir="auto">{pieces.map((piece) => marks.get(piece)?.() ?? piece)}</p>;
}

function blocks(lines: string[], marks: Marks, depth: number): ComponentChildren[] {
  const shown: ComponentChildren[] = [];
  for (let at = 0; at < lines.length; ) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    const [block, next] = kindAt(lines, at, depth)(lines, at, marks, depth);
    shown.push(block);
    at = next;
  }
  return shown;
}

function kindAt(lines: string[], at: number, depth: number): Block {
  const [line = "", under = ""] = lines.slice(at, at + 2);
  if (FENCE.test(line)) return code;
  if (TITLE.test(line)) return title;
  if (RULE.test(line)) return rule;
  if (line.includes("|") && under.includes("|") && /^[ |:-]*-[ |:-]*$/.test(under)) return table;
  return depth < DEEPEST && ITEM.test(line) ? list : paragraph;
}

const isBlank = (line = "") => line.trim() === "";

/** The first line from `at` on of which this holds, else the end. */
function until(lines: string[], at: number, holds: (line: string, place: number) => boolean): number {
  const end = lines.findIndex((line, place) => place >= at && holds(line, place));
  return end < 0 ? lines.length : end;
}

const paragraph: Block = (lines, at, marks, depth) => {
  const end = until(lines, at + 1, (line, place) => isBlank(line) || kindAt(lines, place, depth) !== paragraph);
  return [<p class="plain-text">{inline(lines.slice(at, end).join("\n"), marks)}</p>, end];
};

/** Between fences, of which the second is not there while it is being written. */
const code: Block = (lines, at) => {
  const fence = FENCE.exec(lines[at] ?? "")?.[1] ?? "";
  const end = until(lines, at + 1, (line) => line.trim().length >= fence.length && line.trim().replaceAll(fence.charAt(0), "") === "");
  return [<Code text={lines.slice(at + 1, end).join("\n")} />, end + 1];
};

const title: Block = (lines, at, marks) => [<p class="title">{inline((lines[at] ?? "").replace(TITLE, ""), marks)}</p>, at + 1];

const rule: Block = (_, at) => [<hr />, at + 1];

const table: Block = (lines, at, marks) => {
  const end = until(lines, at + 2, (line) => !line.includes("|"));
  const [head = [], ...rows] = [lines[at] ?? "", ...lines.slice(at + 2, end)].map(cells);
  return [
    <div class="table" role="region" aria-label={words.value.parts.table} tabIndex={0}>
      <table>
        <thead><tr>{head.map((text) => (text ? <th scope="col">{inline(text, marks)}</th> : <td />))}</tr></thead>
        <tbody>{rows.map((row) => <tr>{row.map((text) => <td>{inline(text, marks)}</td>)}</tr>)}</tbody>
      </table>
    </div>,
    end,
  ];
};

const cells = (row: string) => row.trim().replace(/^\||\|$/g, "").split("|").map((text) => text.trim());

/** An item goes on in lines that stand further in; a list, in items of its kind. */
const list: Block = (lines, at, marks, depth) => {
  const first = ITEM.exec(lines[at] ?? "")?.[1];
  const isItem = (line: string) => ITEM.test(line) && (ITEM.exec(line)?.[1] === undefined) === (first === undefined);
  const goesOn = (line = "") => isItem(line) || /^(?: {2}|\t)\s*\S/.test(line);
  const end = until(lines, at + 1, (line, place) => !goesOn(line) && !(isBlank(line) && goesOn(lines[place + 1])));
  const items: string[][] = [];
  for (const line of lines.slice(at, end)) {
    if (isItem(line)) items.push([line.replace(ITEM, "")]);
    else items.at(-1)?.push(line);
  }
  const entries = items.map(([line = "", ...rest]) => <li>{blocks([line, ...dedented(rest)], marks, depth + 1)}</li>);
  return [first === undefined ? <ul>{entries}</ul> : <ol start={Number(first)}>{entries}</ol>, end];
};

function dedented(lines: string[]): string[] {
  const least = Math.min(...lines.filter((line) => !isBlank(line)).map((line) => line.search(/\S/)));
  return lines.map((line) => line.slice(Math.min(least, line.length)));
}

const SPAN = /(?<!`)(`+)(?!`)([^\n]{0,500}?[^`\n])\1(?!`)|\*\*(?=\S)([^\n]{0,500}?\S)\*\*|\*(?=[^\s*])([^\n*]{0,500}?[^\s*])\*(?![\w*])|\[([^\]\n]{1,200})\](?:\((https?:\/\/[^\s()]+)\))?/g;

/** Marks, code, words that stand out, and links, which are followed without telling whence. */
function inline(text: string, marks: Marks): ComponentChildren[] {
  const shown: ComponentChildren[] = [];
  let at = 0;
  for (const span of text.matchAll(SPAN)) {
    const [whole, , quoted, bold, stressed, name, address] = span;
    const mark = marks.get(`[${name}]`);
    const become = () => {
      if (quoted !== undefined) return <code>{quoted}</code>;
      if (bold !== undefined) return <strong>{inline(bold, marks)}</strong>;
      if (stressed !== undefined) return /\w/.test(text.charAt(span.index - 1)) ? whole : <em>{inline(stressed, marks)}</em>;
      if (mark !== undefined) return <>{mark()}{whole.slice(`[${name}]`.length)}</>;
      return address ? <a href={address} target="_blank" rel="noopener noreferrer">{name}</a> : whole;
    };
    shown.push(text.slice(at, span.index), become());
    at = span.index + whole.length;
  }
  return [...shown, text.slice(at)];
}
