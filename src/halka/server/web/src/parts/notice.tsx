// What went wrong or well, announced to screen readers as it appears; and what an empty place says to do first.
import type { ComponentChildren } from "preact";
import { ApiError } from "../api";
import { BrokenStream } from "../events";
import { words } from "../words/words";
import { Button } from "./button";
import { Icon, type IconName } from "./icons";

export function Notice({ kind, children }: { kind: "error" | "warning" | "info" | "done"; children: ComponentChildren }) {
  return (
    <div class={`notice ${kind}`} role={kind === "error" ? "alert" : "status"}>
      <Icon name={kind === "done" ? "check" : kind === "info" ? "info" : "warning"} />
      <div>{children}</div>
    </div>
  );
}

/** An error in the API's words, and a way to try again. */
export function Failure({ error, again }: { error: unknown; again?: () => void }) {
  return (
    <Notice kind="error">
      <p lang={languageOf(error)}>{messageOf(error)}</p>
      {again && <Button icon="again" onClick={again}>{words.value.parts.tryAgain}</Button>}
    </Notice>
  );
}

/** The API speaks English, whatever the page does. */
export const languageOf = (error: unknown) => (error instanceof ApiError && error.status !== 0 ? "en" : undefined);

export function messageOf(error: unknown): string {
  const { shell } = words.value;
  if (error instanceof ApiError) return error.status === 0 ? shell.unreachable : error.message;
  if (error instanceof BrokenStream) return shell.brokenStream;
  return `${shell.unexpected}: ${error instanceof Error ? error.message : String(error)}`;
}

export function Empty({ icon, title, hint, children }: {
  icon: IconName;
  title: string;
  hint: string;
  children?: ComponentChildren;
}) {
  return (
    <section class="empty">
      <Icon name={icon} />
      <h2>{title}</h2>
      <p>{hint}</p>
      {children}
    </section>
  );
}
