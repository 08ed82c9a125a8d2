import { Empty } from "../../parts/notice";
import { words } from "../../words/words";
import { Heading } from "../shown";

export default function Account() {
  const w = words.value.account;
  return (
    <>
      <Heading title={w.title} lead={w.lead} />
      <Empty icon="account" title={w.empty} hint={w.emptyHint} />
    </>
  );
}
