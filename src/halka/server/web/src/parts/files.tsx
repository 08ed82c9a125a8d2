// Files to choose or to drop: a real file input, so that the keyboard and screen readers have it too.
import { useId, useState } from "preact/hooks";
import { bytes, fill, words } from "../words/words";
import { Button } from "./button";
import { Icon } from "./icons";

interface Field {
  label: string;
  hint: string;
  accept?: string;
  error?: string | null;
}

export function FilesField({ label, hint, accept, error = null, files, onFiles, single = false }: Field & {
  files: File[];
  onFiles: (files: File[]) => void;
  /** Another file takes the place of the one before. */
  single?: boolean;
}) {
  const w = words.value.parts;
  const id = useId();
  const [over, setOver] = useState(false);
  const title = single && files.length ? w.otherFile : label;
  const add = (more: Iterable<File>) => {
    const added = [...more].slice(0, single ? 1 : undefined);
    const names = new Set(added.map((file) => file.name));
    if (added.length) onFiles([...(single ? [] : files.filter((file) => !names.has(file.name))), ...added]);
  };
  const drag = (inside: boolean) => (event: DragEvent) => {
    event.preventDefault();
    setOver(inside);
  };
  return (
    <div class="files">
      <label class={over ? "drop over" : "drop"} onDragOver={drag(true)} onDragLeave={drag(false)} onDrop={(event) => {
        drag(false)(event);
        add(event.dataTransfer?.files ?? []);
      }}>
        <input type="file" multiple={!single} accept={accept} aria-label={title} aria-invalid={error ? true : undefined} aria-describedby={`${id}-hint ${error ? `${id}-error` : ""}`}
          onChange={(event) => {
            add(event.currentTarget.files ?? []);
            event.currentTarget.value = "";
          }} />
        <Icon name="upload" />
        <span>
          <strong>{title}</strong>
          <span class="hint" id={`${id}-hint`}>{hint}</span>
          {error && <span class="wrong" id={`${id}-error`}>{error}</span>}
        </span>
      </label>
      {files.length > 0 && (
        <ul>
          {files.map((file) => (
            <li key={file.name}>
              <strong dir="auto">{file.name}</strong>
              <span class="hint">{bytes(file.size)}</span>
              <Button kind="quiet" icon="close" label={fill(w.leaveOut, { name: file.name })} onClick={() => onFiles(files.filter((other) => other !== file))} />
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}

/** One file, or none. */
export function FileField({ file, onFile, ...field }: Field & { file: File | null; onFile: (file: File | null) => void }) {
  return <FilesField {...field} single files={file ? [file] : []} onFiles={([chosen]) => onFile(chosen ?? null)} />;
}
