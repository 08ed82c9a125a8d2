// A place to drop a file on, or to choose one: a real file input, so that the keyboard and screen readers have it too.
import { useId, useState } from "preact/hooks";
import { bytes, words } from "../words/words";
import { Button } from "./button";
import { Icon } from "./icons";

export function FileDrop({ label, hint, accept, file, onFile }: {
  label: string;
  hint: string;
  accept: string;
  file: File | null;
  onFile: (file: File | null) => void;
}) {
  const { parts } = words.value;
  const id = useId();
  const [over, setOver] = useState(false);
  const take = (files: FileList | null | undefined) => files?.[0] && onFile(files[0]);
  return (
    <div class={`drop ${over ? "over" : ""} ${file ? "full" : ""}`}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={(event) => {
        event.preventDefault();
        setOver(false);
        take(event.dataTransfer?.files);
      }}>
      <input id={id} type="file" accept={accept} aria-describedby={`${id}-hint`} onChange={(event) => {
        take(event.currentTarget.files);
        event.currentTarget.value = "";
      }} />
      <label for={id}>
        <Icon name={file ? "documents" : "upload"} />
        <span>
          <strong>{file ? file.name : label}</strong>
          <span class="hint" id={`${id}-hint`}>{file ? `${bytes(file.size)} · ${parts.otherFile}` : hint}</span>
        </span>
      </label>
      {file && <Button kind="quiet" icon="close" label={parts.removeFile} onClick={() => onFile(null)} />}
    </div>
  );
}
