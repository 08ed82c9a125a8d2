// The form that takes files into a collection, and says of each what came of it.
import { useEffect, useRef, useState } from "preact/hooks";
import { Button } from "../../parts/button";
import { ErrorText } from "../../parts/error-text";
import { TextField } from "../../parts/field";
import { FilesField } from "../../parts/files";
import { Progress } from "../../parts/progress";
import { count, fill, labelsIn, words } from "../../words/words";
import { takeInto, uploadingInto } from "./uploads";

export function Upload({ collection, open, onDone }: { collection: string; open: boolean; onDone: () => void }) {
  const w = words.value.documents;
  const { under, outcomes } = uploadingInto(collection).value;
  const [openAtFirst] = useState(open || under !== null || outcomes.length > 0);
  const [files, setFiles] = useState<File[]>([]);
  const [readers, setReaders] = useState("");
  const [tags, setTags] = useState("");
  const [missing, setMissing] = useState(false);
  const busy = under !== null;
  const wasBusy = useRef(busy);
  useEffect(() => {
    if (wasBusy.current && !busy) onDone();
    wasBusy.current = busy;
  }, [busy]);
  const submit = async (event: Event) => {
    event.preventDefault();
    setMissing(!files.length);
    if (busy || !files.length) return;
    const done = await takeInto(collection, files, labelsIn(readers), labelsIn(tags));
    const failed = new Set(done.filter((one) => one.failure).map((one) => one.name));
    setFiles((now) => now.filter((file) => !files.includes(file) || failed.has(file.name))); // others came meanwhile
  };
  return (
    <details class="sheet upload" open={openAtFirst}>
      <summary>{w.addDocuments}</summary>
      <form class="stack" onSubmit={submit} noValidate>
        <FilesField label={w.chooseFiles} hint={w.filesHint} files={files} onFiles={setFiles} error={missing ? w.filesMissing : null} />
        <div class="pair">
          <TextField label={w.readers} value={readers} onValue={setReaders} autocomplete="off" placeholder={w.everyone} hint={w.readersHint} />
          <TextField label={w.tags} value={tags} onValue={setTags} autocomplete="off" hint={w.tagsHint} />
        </div>
        <div class="row"><Button kind="primary" icon="upload" type="submit" busy={busy}>{w.send}</Button></div>
        {under && <Progress label={fill(under.share < 1 ? w.sending : w.reading, { name: under.name, at: under.at, of: under.of })} share={under.share < 1 ? under.share : null} />}
        <div role="status">
          <ul class="outcomes">
            {outcomes.map(({ name, taken, failure }) => (
              <li key={name} class={failure || taken?.status === "skipped" ? "wrong" : ""}>
                <strong dir="auto">{name}</strong>: {failure ? <ErrorText of={failure} /> : taken?.reason ? <span lang="en">{taken.reason}</span> : `${w.status[taken?.status ?? "added"]}, ${count(w.passages, taken?.passages ?? 0)}`}
              </li>
            ))}
          </ul>
        </div>
      </form>
    </details>
  );
}
