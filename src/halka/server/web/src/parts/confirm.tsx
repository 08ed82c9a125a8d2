import { useRef } from "preact/hooks";
import { words } from "../words/words";
import { Button } from "./button";
import { Dialog } from "./dialog";
import { useAction } from "./loading";
import { Failure } from "./notice";

/** Asks once before something is gone; `title` names what. The focus then goes to the heading of the list that it was in. */
export function Confirm({ title, hint, yes, onYes, onDone = () => {}, onClose }: {
  title: string;
  hint: string;
  yes: string;
  /** What is done then; it fails in the dialog. */
  onYes: () => Promise<unknown>;
  /** What comes then, where the reader is still here. */
  onDone?: () => void;
  onClose: () => void;
}) {
  const { busy, failure, run } = useAction();
  const gone = useRef(false);
  const remove = async () => {
    gone.current = true;
    try {
      await onYes();
    } catch (error) {
      gone.current = false;
      throw error;
    }
  };
  const close = () => busy || onClose();
  const focusAfter = (before: Element | null) => {
    const heading = headingAround(before);
    return () => (gone.current ? heading : before);
  };
  return (
    <Dialog title={title} onClose={close} focusAfter={focusAfter}>
      <p>{hint}</p>
      <Failure error={failure} />
      <div class="row">
        <Button kind="danger" icon="trash" busy={busy} onClick={() => run(remove, onDone)}>{yes}</Button>
        <Button onClick={close}>{words.value.parts.cancel}</Button>
      </div>
    </Dialog>
  );
}

/** The heading of the section that an element is in, made able to take the focus. */
function headingAround(element: Element | null): HTMLElement | null {
  const heading = element?.closest("section, main")?.querySelector<HTMLElement>("h1, h2") ?? null;
  if (heading) heading.tabIndex = -1;
  return heading;
}
