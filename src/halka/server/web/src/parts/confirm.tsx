import { words } from "../words/words";
import { Button } from "./button";
import { Dialog } from "./dialog";
import { useAction } from "./loading";
import { Failure } from "./notice";

/** Asks once before something is gone; `title` names what. */
export function Confirm({ title, hint, yes, onYes, onClose }: {
  title: string;
  hint: string;
  yes: string;
  /** What is done then; it fails in the dialog. */
  onYes: () => Promise<unknown>;
  onClose: () => void;
}) {
  const { busy, failure, run } = useAction();
  return (
    <Dialog title={title} onClose={onClose}>
      <p>{hint}</p>
      {failure && <Failure error={failure} />}
      <div class="row">
        <Button kind="danger" icon="trash" busy={busy} onClick={() => run(onYes)}>{yes}</Button>
        <Button onClick={onClose}>{words.value.parts.cancel}</Button>
      </div>
    </Dialog>
  );
}
