// What went wrong or well, announced to screen readers as it appears; and what an empty place says to do first.
import type { ComponentChildren } from "preact";
import { isMissing } from "../api";
import { words } from "../words/words";
import { Button } from "./button";
import { ErrorText } from "./error-text";
import { Icon, type IconName } from "./icons";

export function Notice({ kind, children }: { kind: "error" | "warning" | "info" | "done"; children: ComponentChildren }) {
  return (
    <div class={`notice ${kind}`} role={kind === "error" ? "alert" : "status"}>
      <Icon name={kind === "done" ? "check" : kind === "info" ? "info" : "warning"} />
      <div>{children}</div>
    </div>
  );
}

/** An error in the API's words, and a way to try again; what does not exist will not, then, either. Null: there is none. */
export function Failure({ error, again }: { error: unknown; again?: () => void }) {
  if (error === null) return null;
  return (
    <Notice kind="error">
      <p><ErrorText of={error} /></p>
      {again && !isMissing(error) && <Button icon="again" onClick={again}>{words.value.parts.tryAgain}</Button>}
    </Notice>
  );
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
