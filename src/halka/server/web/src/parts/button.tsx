import type { ComponentChildren, JSX } from "preact";
import { Icon, type IconName } from "./icons";

interface Props extends Omit<JSX.IntrinsicElements["button"], "icon" | "label"> {
  kind?: "primary" | "plain" | "quiet" | "danger";
  icon?: IconName;
  /** What an icon alone means; the button then shows no text. */
  label?: string;
  /** Something runs: the button is dimmed, keeps its focus and does nothing. */
  busy?: boolean;
  children?: ComponentChildren;
}

export function Button({ kind = "plain", icon, label, busy = false, children, onClick, ...rest }: Props) {
  return (
    <button
      type="button"
      class={`button ${kind} ${label === undefined ? "" : "bare"}`}
      aria-label={label}
      title={label}
      aria-disabled={busy || undefined}
      onClick={busy ? (event) => event.preventDefault() : onClick}
      {...rest}
    >
      {icon && <Icon name={icon} />}
      {children}
    </button>
  );
}
