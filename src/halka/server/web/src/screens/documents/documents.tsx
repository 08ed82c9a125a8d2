import { Empty } from "../../parts/notice";
import { words } from "../../words/words";
import { Heading } from "../shown";

export default function Documents() {
  const w = words.value.documents;
  return (
    <>
      <Heading title={w.title} lead={w.lead} />
      <Empty icon="documents" title={w.empty} hint={w.emptyHint} />
    </>
  );
}
