import { percent } from "../words/words";

/** How far something is, from 0 to 1; null: nobody knows. */
export function Progress({ label, share }: { label: string; share: number | null }) {
  return (
    <div class="progress">
      <span>{label}</span>
      <progress aria-label={label} max={1} {...(share === null ? {} : { value: share })} />
      <span class="figure">{share === null ? "" : percent(share)}</span>
    </div>
  );
}

export function Waiting({ label }: { label: string }) {
  return <p class="waiting" role="status">{label}</p>;
}
