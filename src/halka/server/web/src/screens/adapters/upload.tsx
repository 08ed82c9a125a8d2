// Adds an adapter by its files, or the next version of one.
import { useState } from "preact/hooks";
import { paramOf } from "../../api";
import { NameTaken } from "../../jobs/name-taken";
import { Button } from "../../parts/button";
import { curl } from "../../parts/curl";
import { Dialog } from "../../parts/dialog";
import { ErrorText } from "../../parts/error-text";
import { TextField } from "../../parts/field";
import { FilesField } from "../../parts/files";
import { useAction } from "../../parts/loading";
import { wrongName } from "../../parts/names";
import { Failure } from "../../parts/notice";
import { Progress } from "../../parts/progress";
import { quoted, Terminal } from "../../parts/terminal";
import { send } from "../../sending";
import { fill, words } from "../../words/words";
import { ADAPTERS, type Adapter } from "./adapter";

const FILES = ["adapter_config.json", "adapter_model.safetensors", "halka.json"];

/** `name`: the adapter that gets a new version; null: a new one, named here. */
export function Upload({ name, onDone, onClose }: { name: string | null; onDone: (adapter: Adapter) => void; onClose: () => void }) {
  const w = words.value.adapters;
  const [chosen, setChosen] = useState(name ?? "");
  const [files, setFiles] = useState<File[]>([]);
  const [share, setShare] = useState(0);
  const [checked, setChecked] = useState(false);
  const { busy, failure, run } = useAction();
  const wrong = name === null ? wrongName(chosen) : null;
  const ofName = paramOf(failure) === "name" ? <ErrorText of={failure} /> : null;
  const submit = (event: Event) => {
    event.preventDefault();
    setChecked(true);
    if (busy || wrong !== null || !files.length) return;
    const form = new FormData();
    form.append("name", chosen.trim());
    for (const file of files) form.append("files", file, file.name);
    setShare(0);
    run((signal) => send<Adapter>(ADAPTERS, form, setShare, signal), onDone);
  };
  const called = chosen.trim() || "support";
  const sent = files.length ? files.map((file) => file.name) : FILES;
  return (
    <Dialog title={name === null ? w.upload : fill(w.replaceTitle, { name })} onClose={onClose} firm={busy}>
      <form class="stack" onSubmit={submit} noValidate>
        <p>{name === null ? w.uploadHint : w.replaceHint}</p>
        {name === null && (
          <>
            <TextField label={w.name} value={chosen} onValue={setChosen} autocomplete="off" spellcheck={false} hint={w.nameHint}
              error={(checked && wrong) || ofName} />
            <NameTaken name={chosen.trim()} />
          </>
        )}
        <FilesField label={w.chooseFiles} hint={FILES.join(", ")} files={files} onFiles={setFiles} accept=".json,.safetensors,.md"
          error={checked && !files.length ? w.filesMissing : null} />
        {busy && <Progress label={share < 1 ? w.sending : w.checking} share={share < 1 ? share : null} />}
        {failure && !(name === null && ofName) && <Failure error={failure} />}
        <div class="row">
          <Button kind="primary" icon="upload" type="submit" busy={busy}>{w.send}</Button>
          <Button onClick={onClose}>{words.value.parts.cancel}</Button>
        </div>
        <Terminal commands={[
          { id: "curl", text: curl(ADAPTERS, { form: [["name", called], ...sent.map((file): [string, string] => ["files", `@${file}`])] }) },
          { id: "halka", text: `halka adapters add FOLDER ${quoted(called)} --store adapters` },
        ]} />
      </form>
    </Dialog>
  );
}
