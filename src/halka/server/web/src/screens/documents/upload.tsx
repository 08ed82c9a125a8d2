// Takes files into a collection, one after the other, and says of each what came of it.
import { useEffect, useState } from "preact/hooks";
import type { List } from "../../api";
import { Button } from "../../parts/button";
import { ErrorText } from "../../parts/error-text";
import { TextField } from "../../parts/field";
import { FilesField } from "../../parts/files";
import { Progress } from "../../parts/progress";
import { send } from "../../sending";
import { count, fill, labelsIn, words } from "../../words/words";
import { pathOf, type Taken } from "./collection";

interface Outcome {
  name: string;
  taken?: Taken;
  failure?: unknown;
}

export function Upload({ collection, open, onDone }: { collection: string; open: boolean; onDone: () => void }) {
  const w = words.value.documents;
  const [openAtFirst] = useState(open);
  const [files, setFiles] = useState<File[]>([]);
  const [readers, setReaders] = useState("");
  const [tags, setTags] = useState("");
  const [missing, setMissing] = useState(false);
  const [under, setUnder] = useState<{ name: string; at: number; of: number; share: number } | null>(null);
  const [outcomes, setOutcomes] = useState<Outcome[]>([]);
  const [gone] = useState(() => new AbortController());
  useEffect(() => () => gone.abort(), []);
  const put = (file: File, onShare: (share: number) => void) => {
    const form = new FormData();
    form.append("files", file, file.name);
    for (const reader of labelsIn(readers)) form.append("readers", reader);
    for (const tag of labelsIn(tags)) form.append("tags", tag);
    return send<List<Taken>>(`${pathOf(collection)}/documents`, form, onShare, gone.signal);
  };
  const submit = async (event: Event) => {
    event.preventDefault();
    setMissing(!files.length);
    if (under || !files.length) return;
    const done: Outcome[] = [];
    for (const [at, file] of files.entries()) {
      const step = (share: number) => setUnder({ name: file.name, at: at + 1, of: files.length, share });
      step(0);
      await put(file, step).then(({ data: [taken] }) => done.push({ name: file.name, ...(taken ? { taken } : {}) }), (failure: unknown) => done.push({ name: file.name, failure }));
      if (gone.signal.aborted) return;
      setOutcomes([...done]);
    }
    setUnder(null);
    const failed = new Set(done.filter((one) => one.failure).map((one) => one.name));
    setFiles((now) => now.filter((file) => !files.includes(file) || failed.has(file.name)));  // others came meanwhile
    onDone();
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
        <div class="row"><Button kind="primary" icon="upload" type="submit" busy={under !== null}>{w.send}</Button></div>
        {under && <Progress label={fill(under.share < 1 ? w.sending : w.reading, { name: under.name, at: under.at, of: under.of })} share={under.share < 1 ? under.share : null} />}
        <ul class="outcomes" role="status">
          {outcomes.map(({ name, taken, failure }) => (
            <li key={name} class={failure || taken?.status === "skipped" ? "wrong" : ""}>
              <strong dir="auto">{name}</strong>: {failure ? <ErrorText of={failure} /> : taken?.reason ? <span lang="en">{taken.reason}</span> : `${w.status[taken?.status ?? "added"]}, ${count(w.passages, taken?.passages ?? 0)}`}
            </li>
          ))}
        </ul>
      </form>
    </details>
  );
}
