import { Empty } from "../../parts/notice";
import { words } from "../../words/words";
import { Heading } from "../shown";

export default function Compare() {
  const w = words.value.compare;
  return (
    <>
      <Heading title={w.title} lead={w.lead} />
      <Empty icon="compare" title={w.empty} hint={w.emptyHint} />
    </>
  );
}
