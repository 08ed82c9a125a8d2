import { Empty } from "../../parts/notice";
import { words } from "../../words/words";
import { Heading } from "../shown";

export default function Adapters() {
  const w = words.value.adapters;
  return (
    <>
      <Heading title={w.title} lead={w.lead} />
      <Empty icon="adapters" title={w.empty} hint={w.emptyHint} />
    </>
  );
}
