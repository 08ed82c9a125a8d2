import { Empty } from "../../parts/notice";
import { words } from "../../words/words";
import { Heading } from "../shown";

export default function Train() {
  const w = words.value.train;
  return (
    <>
      <Heading title={w.title} lead={w.lead} />
      <Empty icon="train" title={w.empty} hint={w.emptyHint} />
    </>
  );
}
