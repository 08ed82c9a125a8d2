// Files to upload: chosen or dropped, listed with their sizes, and sent with progress.
import { useId, useState } from "preact/hooks";
import { bytes, fill, words } from "../words/words";
import { Button } from "./button";
import { Icon } from "./icons";

export function FilesField({ label, hint, files, onFiles, accept, error = null }: {
  label: string;
  hint: string;
  files: File[];
  onFiles: (files: File[]) => void;
  accept?: string;
  error?: string | null;
}) {
  const w = words.value.parts;
  const [over, setOver] = useState(false);
  const id = useId();
  const add = (more: Iterable<File>) => {
    const added = [...more];
    const names = new Set(added.map((file) => file.name));
    onFiles([...files.filter((file) => !names.has(file.name)), ...added]);
  };
  return (
    <div class="files">
      <label class={over ? "choose-files over" : "choose-files"} onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }} onDragLeave={() => setOver(false)} onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        add(event.dataTransfer?.files ?? []);
      }}>
        <Icon name="upload" />
        <strong>{label}</strong>
        <span class="hint" id={`${id}-hint`}>{hint}</span>
        {error && <span class="wrong" id={`${id}-error`}>{error}</span>}
        <input type="file" multiple accept={accept} aria-label={label} aria-describedby={`${id}-hint ${error ? `${id}-error` : ""}`}
          onChange={(event) => {
            add(event.currentTarget.files ?? []);
            event.currentTarget.value = "";
          }} />
      </label>
      {files.length > 0 && (
        <ul>
          {files.map((file) => (
            <li key={file.name}>
              <span dir="auto">{file.name}</span>
              <span class="hint">{bytes(file.size)}</span>
              <Button kind="quiet" icon="close" label={fill(w.leaveOut, { name: file.name })} onClick={() => onFiles(files.filter((other) => other !== file))} />
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}
