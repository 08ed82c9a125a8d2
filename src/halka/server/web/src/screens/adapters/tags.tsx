// The words that an adapter is found by: all its versions have them.
import { useState } from "preact/hooks";
import { patch } from "../../api";
import { Button } from "../../parts/button";
import { curl } from "../../parts/curl";
import { Dialog } from "../../parts/dialog";
import { TextField } from "../../parts/field";
import { useAction } from "../../parts/loading";
import { Failure } from "../../parts/notice";
import { quoted, Terminal } from "../../parts/terminal";
import { fill, labelsIn, words } from "../../words/words";
import { pathOf, type Adapter } from "./adapter";

export function Tags({ adapter, onDone, onClose }: { adapter: Adapter; onDone: () => void; onClose: () => void }) {
  const w = words.value.adapters;
  const path = pathOf(adapter.id);
  const [text, setText] = useState(adapter.tags.join(", "));
  const { busy, failure, run } = useAction();
  const tags = labelsIn(text.replaceAll("#", ""));
  const gone = adapter.tags.filter((tag) => !tags.includes(tag));
  const tagging = (which: string[], more = "") =>
    which.length ? [`halka adapters tag ${[adapter.id, ...which].map(quoted).join(" ")}${more} --store adapters`] : [];
  const halka = [...tagging(tags), ...tagging(gone, " --remove")].join("\n");
  return (
    <Dialog title={fill(w.tagsTitle, { name: adapter.id })} onClose={onClose}>
      <form class="stack" noValidate onSubmit={(event) => {
        event.preventDefault();
        if (!busy) run(() => patch<Adapter>(path, { tags }).then(onDone));
      }}>
        <TextField label={w.tags} hint={w.tagsHint} value={text} onValue={setText} autocomplete="off" spellcheck={false} />
        <Failure error={failure} />
        <div class="row">
          <Button kind="primary" type="submit" busy={busy}>{w.saveTags}</Button>
          <Button onClick={onClose}>{words.value.parts.cancel}</Button>
        </div>
        <Terminal commands={[
          ...(halka ? [{ id: "halka", text: halka }] : []),
          { id: "curl", text: curl(path, { method: "PATCH", json: { tags } }) },
        ]} />
      </form>
    </Dialog>
  );
}
