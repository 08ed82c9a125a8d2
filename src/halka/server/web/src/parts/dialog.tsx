import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";
import { words } from "../words/words";
import { Button } from "./button";

/** A dialog over the page while it is there: Escape, its button and a click beside it call `onClose`; if `firm`, the button alone. */
export function Dialog({ title, onClose, children, wide = false, firm = false }: {
  title: ComponentChildren;
  onClose: () => void;
  children: ComponentChildren;
  wide?: boolean;
  firm?: boolean;
}) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const before = document.activeElement;
    dialog.current?.showModal();
    return () => before instanceof HTMLElement && before.focus();
  }, []);
  return (
    <dialog ref={dialog} class={wide ? "dialog wide" : "dialog"} aria-labelledby={id} onCancel={(event) => {
      event.preventDefault();
      if (!firm) onClose();
    }} onClick={(event) => !firm && event.target === dialog.current && onClose()}>
      <div class="dialog-inside">
        <header>
          <h2 id={id}>{title}</h2>
          <Button kind="quiet" icon="close" label={words.value.parts.close} onClick={onClose} />
        </header>
        {children}
      </div>
    </dialog>
  );
}
