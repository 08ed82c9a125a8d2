import type { ComponentChildren } from "preact";

/** Names with their values; what has none is left out. */
export function Terms({ of }: { of: [string, ComponentChildren][] }) {
  const shown = of.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return <dl class="terms">{shown.flatMap(([name, value]) => [<dt key={name}>{name}</dt>, <dd key={`${name}=`}>{value}</dd>])}</dl>;
}
