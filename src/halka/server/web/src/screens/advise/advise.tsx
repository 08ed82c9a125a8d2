import { Empty } from "../../parts/notice";
import { words } from "../../words/words";
import { Heading } from "../shown";

export default function Advise() {
  const w = words.value.advise;
  return (
    <>
      <Heading title={w.title} lead={w.lead} />
      <Empty icon="advise" title={w.empty} hint={w.emptyHint} />
    </>
  );
}
